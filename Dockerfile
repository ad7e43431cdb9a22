# Two images: `service` answers and cannot import torch, `worker` exports. Neither is root, neither needs to write to its
# own files. No `# syntax` line: it would have to be pulled before anything is built.
ARG BASE_IMAGE=python:3.11-slim

# Wheels that no index has for this machine: `--build-context wheels=FOLDER`. Else none.
FROM scratch AS wheels

FROM ${BASE_IMAGE} AS source
RUN python -m venv /venv
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY attnserve attnserve
COPY models models
COPY export export
COPY service service
COPY worker worker

FROM ${BASE_IMAGE} AS build-kernels
# hadolint ignore=DL3008
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends cmake g++ make && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY kernels kernels
RUN kernels/headers && cmake -S kernels -B build && cmake --build build

FROM source AS build-service
# gpu: CUDA comes along, and the image is several times as large (docker-compose.gpu.yml).
ARG EXTRAS=jobs,tracing
# One wheel of ONNX Runtime runs on CPU and GPU. Of its 340 MB, 285 are the CUDA provider, which only a GPU loads.
# Exporting belongs to another process; an image that can import torch is one that will some day.
RUN --mount=type=cache,target=/root/.cache/pip \
    /venv/bin/pip install --disable-pip-version-check -c constraints.txt ".[${EXTRAS}]" \
 && case ",${EXTRAS}," in *,gpu,*) ;; *) rm /venv/lib/python3*/site-packages/onnxruntime/capi/*_providers_[ct]*.so ;; esac \
 && /venv/bin/python -c "import importlib.util as u, sys; sys.exit([n for n in ('torch', 'onnx', 'onnxscript') if u.find_spec(n)] or 0)"

FROM source AS build-worker
# Where torch for the CPU is; that of PyPI brings gigabytes of CUDA along. Empty: wherever pip looks by itself.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=bind,from=wheels,target=/wheels --mount=type=cache,target=/root/.cache/pip \
    /venv/bin/pip install --disable-pip-version-check -c constraints.txt --find-links /wheels \
      ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} ".[huggingface]" \
 && rm /venv/lib/python3*/site-packages/onnxruntime/capi/*_providers_[ct]*.so

# What both are: a user of no rights, and folders that volumes take their owner from.
FROM ${BASE_IMAGE} AS runtime
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
RUN install -d -o 10001 -g 10001 /repository /checkpoints
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["attnserve"]

FROM runtime AS worker
COPY --from=build-worker /venv /venv
ENV ATTNSERVE_ALIVE_FILE=/tmp/alive
# Until the first round the database is being prepared, and exports are answered 503.
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s \
  CMD ["python", "-c", "import os, time; assert time.time() - os.stat('/tmp/alive').st_mtime < 30"]
CMD ["worker", "/repository"]

FROM runtime AS service
COPY --from=build-service /venv /venv
COPY --from=build-kernels /source/build/libattnserve_kernels.so /kernels/
ENV ATTNSERVE_KERNELS=/kernels/libattnserve_kernels.so
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
# Refuses to start unless it is given keys, or ATTNSERVE_ALLOW_ANONYMOUS, as docker-compose.yml does behind its gateway.
CMD ["serve", "/repository", "--host", "0.0.0.0", "--port", "8000"]
