# One small image; `worker`, `load-test`, `health` and the rest of `my-app` are its commands.
# Any image with Python 3.11 or newer and its venv module will do, also by digest: python:3.13-slim-trixie@sha256:…
ARG PYTHON_IMAGE=python:3.13-slim-trixie

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS build
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/venv
# Dependencies are a layer of their own: they change less often than the code.
ARG APP_EXTRA=""
COPY requirements/ /requirements/
RUN --mount=type=secret,id=ca_bundle \
    --mount=type=cache,target=/root/.cache/pip \
    if [ -s /run/secrets/ca_bundle ]; then export PIP_CERT=/run/secrets/ca_bundle; fi; \
    /opt/pip/bin/pip --python /opt/venv/bin/python install --quiet --require-hashes --no-deps --only-binary :all: \
      --disable-pip-version-check --root-user-action ignore -r "/requirements/${APP_EXTRA:-app}.txt"
COPY app/ /srv/aegis/app/
# No file can be written where the image runs, bytecode neither.
RUN python3 -m compileall -q /srv/aegis/app \
    && for name in aegis-worker my-app; do \
         printf '#!/opt/venv/bin/python\nfrom app.cli import main\nmain()\n' > "/opt/venv/bin/$name"; \
         chmod 755 "/opt/venv/bin/$name"; \
       done

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE}
# What installs packages has no use where nothing can be installed. The official image and Debian's keep it in
# different places.
RUN rm -rf /usr/local/lib/python3*/ensurepip /usr/local/lib/python3*/site-packages/pip* /usr/local/bin/pip* \
      /usr/lib/python3*/ensurepip /usr/share/python-wheels \
    && echo 'worker:x:10001:' >> /etc/group \
    && echo 'worker:x:10001:10001:worker:/data:/usr/sbin/nologin' >> /etc/passwd \
    && install -d -o 10001 -g 10001 /data
COPY --from=build /opt/venv /opt/venv
COPY --from=build /srv/aegis /srv/aegis
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/srv/aegis \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    IN_CONTAINER=1 \
    WORKER_DATA_DIR=/data \
    WORKER_BEAT_DIR=/tmp/worker-beats
WORKDIR /srv/aegis
USER 10001:10001
VOLUME /data
HEALTHCHECK CMD ["sh", "/srv/aegis/app/components/worker/healthcheck.sh"]
ENTRYPOINT ["aegis-worker"]
CMD ["worker"]
# Last, since it changes with every build that is kept.
ARG APP_VERSION=dev
LABEL org.opencontainers.image.title="aegis-worker" \
      org.opencontainers.image.description="arq workers on Redis" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${APP_VERSION}"
