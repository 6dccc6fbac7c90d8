"""The programs are checked here, not collected: one of them has a test's name."""

collect_ignore = ["programs"]
