"""The HTTP API: `/v1/videos` and the page."""
