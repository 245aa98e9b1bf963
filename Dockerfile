# One small image; `worker`, `load-test`, `health` and the rest of `my-app` are its commands.
# Any Debian image with Python 3.11 or newer and its venv module will do, also by its digest.
#
# The same input makes the same layers, bit for bit: what a stage writes gets the time 0 and permissions that do not
# depend on the checkout's, and bytecode is never checked, as no source changes where the image runs. A stage makes its
# layer as a tree, /layer, since COPY would give folders that it has to make the time of the build.
ARG PYTHON_IMAGE=python:3.13-slim-trixie

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS base

# -- the root: Debian and Python, without what a worker does not need -------------------------------------------------
FROM base AS root
RUN --mount=type=bind,from=base,target=/base \
    --mount=type=bind,source=image,target=/image \
    start=$(date +%s) \
    && cp -a /base /layer \
    && PYTHONDONTWRITEBYTECODE=1 python3 /image/trim.py /layer \
    && echo 'worker:x:10001:' >> /layer/etc/group \
    && echo 'worker:x:10001:10001:worker:/data:/usr/sbin/nologin' >> /layer/etc/passwd \
    && install -d -o 10001 -g 10001 /layer/data \
    && find /layer -perm /6000 -exec chmod ug-s {} + \
    && find /layer -newermt "@$start" -exec touch --no-dereference --date @0 {} +

# -- dependencies: a layer of their own, since they change less often than the code -----------------------------------
FROM base AS venv
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/venv
ARG APP_EXTRA=""
ENV PYTHONHASHSEED=0
COPY requirements/ /requirements/
RUN --mount=type=secret,id=ca_bundle \
    --mount=type=cache,target=/root/.cache/pip \
    if [ -s /run/secrets/ca_bundle ]; then export PIP_CERT=/run/secrets/ca_bundle; fi; \
    export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
    && /opt/pip/bin/pip install --quiet --require-hashes --no-deps --only-binary :all: -r /requirements/build.txt \
    && /opt/pip/bin/pip --python /opt/venv/bin/python install --quiet --require-hashes --no-deps --only-binary :all: \
      --no-compile --report /opt/report.json -r "/requirements/${APP_EXTRA:-app}.txt"
COPY library/ /library/
# The library becomes a wheel here, whose files may not be older than 1980. All of it is installed without the index.
RUN export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_INDEX=1 SOURCE_DATE_EPOCH=315532800 \
    && chmod -R u=rwX,go=rX /library \
    && /opt/pip/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /opt/wheels /library \
    && /opt/pip/bin/pip --python /opt/venv/bin/python install --quiet --no-deps --no-compile --find-links /opt/wheels \
      --report /opt/library.json aegis-worker \
    && ln -s aegis-worker /opt/venv/bin/my-app \
    # A package may have files that are not for this Python.
    && { python3 -m compileall -qq --invalidation-mode unchecked-hash /opt/venv/lib || true; } \
    && mkdir -p /layer/opt && mv /opt/venv /layer/opt \
    && find /layer -exec touch --no-dereference --date @0 {} +

# -- the bill of materials, of both; its tools stay behind ------------------------------------------------------------
FROM venv AS sbom
RUN --mount=type=secret,id=ca_bundle \
    --mount=type=cache,target=/root/.cache/pip \
    if [ -s /run/secrets/ca_bundle ]; then export PIP_CERT=/run/secrets/ca_bundle; fi; \
    /opt/pip/bin/pip install --quiet --require-hashes --no-deps --only-binary :all: \
      --disable-pip-version-check --root-user-action ignore -r /requirements/sbom.txt
COPY image/sbom.py pyproject.toml /
RUN --mount=type=bind,from=root,source=/layer,target=/mnt \
    mkdir -p /bill/srv/aegis \
    && /opt/pip/bin/cyclonedx-py environment --output-reproducible --pyproject /pyproject.toml \
      --output-file /python.json /layer/opt/venv \
    && python3 /sbom.py /python.json /mnt /opt/report.json /opt/library.json > /bill/srv/aegis/sbom.cdx.json \
    && find /bill -exec touch --no-dereference --date @0 {} +

# -- the code ---------------------------------------------------------------------------------------------------------
FROM base AS code
ENV PYTHONHASHSEED=0
COPY app/ /layer/srv/aegis/app/
COPY library/aegis_worker/process/healthcheck.sh /layer/srv/aegis/
RUN python3 -m compileall -q --invalidation-mode unchecked-hash -s /layer /layer/srv/aegis/app \
    && chmod -R u=rwX,go=rX /layer \
    && find /layer -exec touch --no-dereference --date @0 {} +

# -- the image --------------------------------------------------------------------------------------------------------
FROM scratch
COPY --from=root /layer /
COPY --from=venv /layer /
COPY --from=sbom /bill /
COPY --from=code /layer /
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
HEALTHCHECK CMD ["sh", "/srv/aegis/healthcheck.sh"]
ENTRYPOINT ["aegis-worker"]
CMD ["worker"]
# Last, since it changes with every build that is kept.
ARG PYTHON_IMAGE
ARG APP_VERSION=dev
LABEL org.opencontainers.image.title="aegis-worker" \
      org.opencontainers.image.description="arq workers on Redis" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}" \
      org.opencontainers.image.version="${APP_VERSION}"
