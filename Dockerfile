# What runs a worker in production? This image, as `python worker.py`; it also holds the command line (`python -m starter …`) and
# the job that prepares the database, but none of the embedded servers' binaries and nothing that only tests need.
#
# A tag can be moved. To pin the bytes, look the digest up once (docker buildx imagetools inspect python:3.11.15-slim-bookworm)
# and write python:3.11.15-slim-bookworm@sha256:… in both places.

FROM python:3.11.15-slim-bookworm AS dependencies
COPY deploy/worker.lock /tmp/worker.lock
RUN python -m venv --without-pip /opt/venv \
    && python -m pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
        --only-binary :all: --require-hashes -r /tmp/worker.lock

FROM python:3.11.15-slim-bookworm
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
COPY --from=dependencies /opt/venv /opt/venv
COPY durable_agents ./durable_agents
COPY workflows ./workflows
COPY activities ./activities
COPY starter ./starter
COPY worker.py ./
# Last, because it changes most: your own agents, or mount them and name their folders in DURABLE_AGENTS_AGENTS_PATH.
COPY agents ./agents
RUN python -m compileall -q /app
USER 10001:10001

# Asks Temporal whether this container's worker polls its queue.
HEALTHCHECK --interval=30s --timeout=15s --start-period=60s --retries=3 CMD ["python", "-m", "starter.production.worker_health"]

# The exec form: worker.py is process 1, gets SIGTERM itself, and lets running activities finish. It starts no processes, so
# there is nothing for an init to reap. Give it more time than DURABLE_AGENTS_GRACEFUL_SHUTDOWN before it is killed.
CMD ["python", "worker.py"]
