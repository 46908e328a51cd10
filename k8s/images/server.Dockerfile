# Triton and worker for GPUs. Build from the root of the project:
#   docker build -f k8s/images/server.Dockerfile -t registry.example.com/wan/server:0.1.0 .
# The release of the base decides the TensorRT version of the engines: a new base needs a new engine build.
FROM nvcr.io/nvidia/tritonserver:26.04-py3

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_BREAK_SYSTEM_PACKAGES=1 \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONNOUSERSITE=1 PYTHONPATH=/app

# Rarely changing and large first: a change of the code rebuilds only the last layer.
RUN pip install torch==2.13.0
# The bindings alone: the library is in the base image, and its version is theirs.
RUN pip install --no-deps "tensorrt-cu${CUDA_VERSION%%.*}-bindings==${TRT_VERSION%%+*}"
COPY k8s/images/server.lock /tmp/requirements.lock
RUN pip install --require-hashes -r /tmp/requirements.lock

WORKDIR /app
COPY contract contract
COPY wan wan
COPY stages stages
COPY export export
COPY model_repository model_repository
COPY service service

USER 1000:1000
CMD ["tritonserver", "--help"]
