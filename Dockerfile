# dd3g on a CPU:  docker build -t dd3g . && docker run --rm -p 8000:8000 dd3g
# Other commands: docker run --rm --user "$(id -u)" -v "$PWD:/data" dd3g infer photo.jpg -o out
FROM python:3.12-slim-bookworm

# An index with builds of torch for CPUs alone saves some gigabytes: --build-arg PIP_EXTRA_INDEX_URL=…
ARG PIP_EXTRA_INDEX_URL=""

WORKDIR /opt/dd3g
COPY . .
RUN pip install --no-cache-dir -c constraints.txt '.[serve,video]'

# Models and compiled kernels lie in one place that any user may write to; a first run fills it.
ENV HOME=/cache DD3G_CACHE=/cache NUMBA_CACHE_DIR=/cache/numba
RUN dd3g models fetch u2netp \
    && dd3g infer assets/lamp.png -o /tmp/out --format ply,spz,glb,mesh.glb --viewer \
    && rm -rf /tmp/out \
    && chmod -R a+rwX /cache

USER 10001
WORKDIR /data
EXPOSE 8000
ENTRYPOINT ["dd3g"]
CMD ["serve", "--host", "0.0.0.0"]
