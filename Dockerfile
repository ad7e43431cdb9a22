# The service alone: no torch, no onnx, not root. `docker compose up` runs it behind the gateway.
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS build
WORKDIR /source
RUN python -m venv /venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY attnserve attnserve
COPY models models
COPY export export
COPY service service
RUN /venv/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt .

FROM ${BASE_IMAGE} AS service
COPY --from=build /venv /venv
# Exporting belongs to another process; an image that can import torch is one that will some day.
RUN /venv/bin/python -c "import importlib.util as u, sys; sys.exit([n for n in ('torch', 'onnx', 'onnxscript') if u.find_spec(n)] or 0)"
# The root file system may be read-only; /tmp is the one place that is not.
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
# Refuses to start unless it is given keys, or ATTNSERVE_ALLOW_ANONYMOUS, as docker-compose.yml does behind its gateway.
ENTRYPOINT ["attnserve"]
CMD ["serve", "/repository", "--host", "0.0.0.0", "--port", "8000"]
