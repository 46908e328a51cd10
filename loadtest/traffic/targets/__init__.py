"""Where load can go: the public HTTP API, or Triton's ensemble by gRPC and HTTP."""
