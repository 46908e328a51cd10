# The gateway, from the output of `bentoml build`. Its folder is the build context:
#   bentoml build
#   docker build -f k8s/images/gateway.Dockerfile -t registry.example.com/wan/gateway:0.1.0 "$(bentoml get wan:latest -o path)"
FROM python:3.11.13-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

# gateway.lock, which bentofile.yaml names
COPY env/python/requirements.txt /tmp/requirements.lock
RUN pip install --require-hashes -r /tmp/requirements.lock

WORKDIR /app
COPY src .

USER 1000:1000
EXPOSE 3000
CMD ["bentoml", "serve", "service.service:WanService", "--host", "0.0.0.0", "--port", "3000"]
