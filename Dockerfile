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
