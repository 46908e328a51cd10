# Triton and worker for the CPU demo, with the small checkpoint. Build from the root of the project:
#   docker build -f k8s/images/server-cpu.Dockerfile -t localhost/wan/server-cpu:0.1.0 .
# PyTorch's default wheel brings CUDA along; give its CPU index with --build-arg PIP_EXTRA_INDEX_URL=... to save gigabytes.
FROM python:3.11.13-slim-bookworm

ARG PIP_EXTRA_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONPATH=/app

RUN pip install torch==2.13.0
COPY k8s/images/server-cpu.lock /tmp/requirements.lock
RUN pip install --require-hashes -r /tmp/requirements.lock

WORKDIR /app
COPY contract contract
COPY wan wan
COPY stages stages
COPY export export
COPY model_repository model_repository
COPY models/tiny models/tiny
COPY service service

USER 1000:1000
CMD ["python3", "-m", "service.launcher", "--help"]
