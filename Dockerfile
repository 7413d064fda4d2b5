# The images of Preceptor's services, one target each; compose.yaml says how they are run.
#   docker build --target sandbox .
# Packages come before code, so that a change of code rebuilds one small layer. Everything is compiled here: the
# containers' own files cannot be written.

FROM python:3.11-slim AS python
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

FROM python AS sandbox-packages
COPY constraints.txt .
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --without-pip /venv \
    && python3 -m pip --python /venv/bin/python install -q --no-compile -c constraints.txt \
        fastapi httptools numpy pydantic uvicorn uvloop \
    # what numpy brings for those who build on it, and its tests
    && find /venv/lib/*/site-packages/numpy -type d \( -name tests -o -name include -o -path '*/_core/lib' \) -prune \
        -exec rm -r {} + \
    && /venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /venv/lib

FROM python AS sandbox
COPY --from=sandbox-packages /venv /venv
WORKDIR /app
COPY sandbox sandbox
RUN /venv/bin/python -m compileall -q --invalidation-mode unchecked-hash sandbox
USER 1000:1000
EXPOSE 8130
ENTRYPOINT ["/venv/bin/python", "-m", "sandbox", "--host", "0.0.0.0"]

# --- vLLM, in an environment of its own: KIND=cpu, or KIND=gpu where the container is given one ---

FROM python AS vllm
# what is compiled while it runs, kernels' launchers among it
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
ARG KIND=cpu
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
COPY services/policy/install_vllm.py /install_vllm.py
RUN --mount=type=cache,target=/root/.cache/pip python3 /install_vllm.py /venv --kind "$KIND"
ENV HOME=/tmp HF_HUB_OFFLINE=1
USER 10001:10001
EXPOSE 8000
ENTRYPOINT ["/venv/bin/serve-policy"]
CMD ["/models/policy", "--host", "0.0.0.0", "--port", "8000"]
