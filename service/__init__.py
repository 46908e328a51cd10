"""The public face of the project: jobs, files, HTTP API, worker and web page around a Triton server."""
