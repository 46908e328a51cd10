"""Promises of the service, each put to the test: nothing lost, nothing twice, fair shares, small overheads."""
