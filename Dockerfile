# Three images, each from its lock, on a slim Debian, as an unprivileged user that can write nowhere:
#
#   docker build -t lstmstream .                           the daemon: the base install, 207 MiB beside Python
#   docker build -t lstmstream:cuda --target cuda .        the daemon with ONNX Runtime for NVIDIA GPUs, 2.4 GiB
#   docker build -t lstmstream:train --target train .      `lstmstream train`, with torch, about 6 GB
#
#   docker run --read-only --cap-drop ALL -v "$PWD/stream.yaml:/etc/lstmstream/stream.yaml:ro" lstmstream
#   docker run --gpus all --read-only --cap-drop ALL -v "$PWD/stream.yaml:/etc/lstmstream/stream.yaml:ro" lstmstream:cuda
#   docker run --user "$(id -u):$(id -g)" -v "$PWD:/data" lstmstream:train train train.yaml
#
# The base image is pinned by tag and digest. To renew both: `docker buildx imagetools inspect python:TAG`. What is compiled
# in one stage must fit the others, so all come from this line. The daemon is the last stage, which is built by default.
ARG PYTHON=python:3.11.13-slim-bookworm@sha256:86adf8dbadc3d6e82ee5dd2c74bec2e1c2467cdad47886280501df722372d2e1

FROM ${PYTHON} AS tools
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
# For the compiled codec, which is all that is compiled here. Debian signs its packages; none of these is in an image.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
COPY requirements requirements
RUN pip install --require-hashes --only-binary :all: -r requirements/build.txt
# The environment that is copied has no pip; the pip of this stage installs into it. Wheels only.
RUN python -m venv --without-pip /opt/lstmstream

FROM tools AS package
COPY pyproject.toml README.md LICENSE ./
COPY lstmstream lstmstream
COPY native native
RUN pip wheel --no-deps --no-build-isolation --no-index --wheel-dir dist . \
    && mkdir codec && python native/build.py --required --out codec

FROM tools AS build-cuda
RUN pip --python /opt/lstmstream/bin/python install --require-hashes --only-binary :all: -r requirements/cuda.txt
COPY --from=package /build/dist dist
COPY --from=package /build/codec codec
RUN pip --python /opt/lstmstream/bin/python install --no-deps --no-index dist/*.whl \
    && cp codec/* /opt/lstmstream/lib/python3.11/site-packages/lstmstream/ \
    && LSTMSTREAM_CODEC=compiled /opt/lstmstream/bin/lstmstream --version

FROM tools AS build-train
RUN pip --python /opt/lstmstream/bin/python install --require-hashes --only-binary :all: -r requirements/train.txt
COPY --from=package /build/dist dist
COPY --from=package /build/codec codec
RUN pip --python /opt/lstmstream/bin/python install --no-deps --no-index dist/*.whl \
    && cp codec/* /opt/lstmstream/lib/python3.11/site-packages/lstmstream/ \
    && LSTMSTREAM_CODEC=compiled /opt/lstmstream/bin/lstmstream --version

FROM tools AS build-base
RUN pip --python /opt/lstmstream/bin/python install --require-hashes --only-binary :all: -r requirements/base.txt
COPY --from=package /build/dist dist
COPY --from=package /build/codec codec
RUN pip --python /opt/lstmstream/bin/python install --no-deps --no-index dist/*.whl \
    && cp codec/* /opt/lstmstream/lib/python3.11/site-packages/lstmstream/ \
    && LSTMSTREAM_CODEC=compiled /opt/lstmstream/bin/lstmstream --version

FROM ${PYTHON} AS user
ENV PATH=/opt/lstmstream/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# A number, so that Kubernetes can see that it is not root. It owns no files.
USER 10001:10001
WORKDIR /
ENTRYPOINT ["lstmstream"]

FROM user AS train
COPY --from=build-train /opt/lstmstream /opt/lstmstream
WORKDIR /data
CMD ["--help"]

FROM user AS served
EXPOSE 9108
# Liveness, not readiness: a daemon that waits for its broker must not be restarted. Another `http.port` needs another check.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9108/livez', timeout=4)"]
CMD ["run", "/etc/lstmstream/stream.yaml"]

FROM served AS cuda
COPY --from=build-cuda /opt/lstmstream /opt/lstmstream

FROM served AS daemon
COPY --from=build-base /opt/lstmstream /opt/lstmstream
