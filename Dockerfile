# Two images:
#   docker build --target proxy -t seedproof-proxy .   the proxy alone, without torch
#   docker build --target full -t seedproof .          proxy and verifier; --build-arg TORCH_INDEX=URL chooses torch's build,
#                                                      --build-arg EXTRAS=cpu,postgres,ray is for workers in a Ray cluster
# Mount the configuration at /etc/seedproof/seedproof.toml; it must listen on 0.0.0.0:8080. A SQLite store and the
# model cache live in the volume /var/lib/seedproof. A plain worker answers no health check: run it with
#   docker run --no-healthcheck seedproof worker …
ARG PYTHON=3.13

# Every locked package, checked against its hash; the later stages install from here and from nowhere else.
FROM python:${PYTHON}-slim AS wheels
WORKDIR /src
COPY requirements.lock .
RUN pip download --no-cache-dir --require-hashes --no-deps --dest /wheels -r requirements.lock \
    && sed -n 's/^\([a-z0-9].*\) \\$/\1/p' requirements.lock > /wheels/constraints.txt

FROM wheels AS build-proxy
RUN python -m venv --without-pip /opt/seedproof
COPY . .
RUN pip --python /opt/seedproof/bin/python install --no-index --find-links /wheels '.[postgres]'

FROM wheels AS build-full
ARG TORCH=2.13.0
ARG TORCH_INDEX=
RUN python -m venv --without-pip /opt/seedproof \
    && pip --python /opt/seedproof/bin/python install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
        --find-links /wheels --constraint /wheels/constraints.txt "torch==$TORCH"
COPY . .
ARG EXTRAS=cpu,postgres
RUN pip --python /opt/seedproof/bin/python install --no-index --find-links /wheels ".[$EXTRAS]"

FROM python:${PYTHON}-slim AS base
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/seedproof seedproof
ENV PATH=/opt/seedproof/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /var/lib/seedproof
VOLUME /var/lib/seedproof
USER seedproof
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-c", \
    "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/healthz', timeout=4)"]
ENTRYPOINT ["seedproof"]

FROM base AS full
COPY --from=build-full /opt/seedproof /opt/seedproof
CMD ["serve", "--with-worker", "--config", "/etc/seedproof/seedproof.toml"]

FROM base AS proxy
COPY --from=build-proxy /opt/seedproof /opt/seedproof
CMD ["serve", "--config", "/etc/seedproof/seedproof.toml"]
