"""How fast a store is, beside what its disk or its server gives: for `ewe bench` and the project's benchmarks."""
