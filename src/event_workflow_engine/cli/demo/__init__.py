"""`ewe demo`: two orders, a worker that is killed in the middle, and how both end."""
