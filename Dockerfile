# The daemon: the base install from the lock, on a slim Debian, as an unprivileged user that can write nowhere.
#
#   docker build -t lstmstream .
#   docker run --read-only --cap-drop ALL -v "$PWD/stream.yaml:/etc/lstmstream/stream.yaml:ro" lstmstream
#
# The base image is pinned by tag and digest. To renew both: `docker buildx imagetools inspect python:TAG`.
# Both stages use the same line on purpose: what is compiled in one must fit the other.

FROM python:3.11.13-slim-bookworm@sha256:86adf8dbadc3d6e82ee5dd2c74bec2e1c2467cdad47886280501df722372d2e1 AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
# For the compiled codec, which is all that is compiled here. Debian signs its packages; none of these is in the image.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
# The environment that is copied has no pip; the pip of this stage installs into it. Wheels only.
RUN python -m venv --without-pip /opt/lstmstream
COPY requirements/base.txt requirements/build.txt requirements/
RUN pip --python /opt/lstmstream/bin/python install --require-hashes --only-binary :all: -r requirements/base.txt \
    && pip install --require-hashes --only-binary :all: -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY lstmstream lstmstream
COPY native native
RUN pip wheel --no-deps --no-build-isolation --no-index --wheel-dir dist . \
    && pip --python /opt/lstmstream/bin/python install --no-deps --no-index dist/*.whl \
    && python native/build.py --required --out /opt/lstmstream/lib/python3.11/site-packages/lstmstream \
    && LSTMSTREAM_CODEC=compiled /opt/lstmstream/bin/lstmstream --version

FROM python:3.11.13-slim-bookworm@sha256:86adf8dbadc3d6e82ee5dd2c74bec2e1c2467cdad47886280501df722372d2e1
COPY --from=build /opt/lstmstream /opt/lstmstream
ENV PATH=/opt/lstmstream/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# A number, so that Kubernetes can see that it is not root. It owns no files.
USER 10001:10001
WORKDIR /
EXPOSE 9108
# Liveness, not readiness: a daemon that waits for its broker must not be restarted. Another `http.port` needs another check.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9108/livez', timeout=4)"]
ENTRYPOINT ["lstmstream"]
CMD ["run", "/etc/lstmstream/stream.yaml"]
