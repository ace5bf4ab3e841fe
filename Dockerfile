# syntax=docker/dockerfile:1
# CPU:   docker build -t girandole .
# CUDA:  docker build -t girandole:cuda13-sm90 --build-arg VARIANT=cuda --build-arg CUDA_COMPUTE_CAP=90 .
# For drivers from 570 on, not 580:  --build-arg CUDA_VERSION=12.8.1
# With cuDNN, whose convolutions make pictures faster:  --build-arg CUDNN=yes
ARG VARIANT=cpu
ARG CUDA_VERSION=13.0.1
# Anything for cuDNN's convolutions, nothing for none.
ARG CUDNN=

# --- build -------------------------------------------------------------------------------------
FROM rust:1.95-bookworm AS build-cpu
ENV FEATURES=""

FROM nvidia/cuda:${CUDA_VERSION}-${CUDNN:+cudnn-}devel-ubuntu24.04 AS build-cuda
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential ca-certificates curl pkg-config \
    && rm -rf /var/lib/apt/lists/* \
    && curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain 1.95.0
ENV PATH=/root/.cargo/bin:$PATH
# No card can be seen while an image is built, so its compute capability has to be said:
# 80 A100, 86 A10, 89 L4 and L40S, 90 H100 and H200.
ARG CUDA_COMPUTE_CAP=90
ARG CUDNN
ENV CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP} FEATURES="--features ${CUDNN:+cudnn,}cuda"

# hadolint ignore=DL3006
FROM build-${VARIANT} AS build
WORKDIR /src
COPY . .
# FEATURES is one option or nothing, so it must be split.
# hadolint ignore=SC2086
RUN cargo build --release --locked $FEATURES

# --- run ---------------------------------------------------------------------------------------
FROM debian:bookworm-slim AS run-cpu
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3-pip \
    && rm -rf /var/lib/apt/lists/*

FROM nvidia/cuda:${CUDA_VERSION}-base-ubuntu24.04 AS run-cuda
# cuBLAS, cuRAND and NVRTC of the release that the program was built with; the driver's libcuda
# comes from the host (docker run --gpus all), and its stand-in of the build must not be here.
ARG CUDA_VERSION
ARG CUDNN
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN release=$(cut -d. -f1,2 <<<"$CUDA_VERSION" | tr . -) \
    && apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3-pip \
        "libcublas-$release" "libcurand-$release" "cuda-nvrtc-$release" \
        ${CUDNN:+"libcudnn9-cuda-${CUDA_VERSION%%.*}"} \
    && rm -rf /var/lib/apt/lists/*

# hadolint ignore=DL3006
FROM run-${VARIANT}
RUN useradd --system --create-home --uid 10001 girandole
COPY --from=build /src/target/release/girandole /usr/local/bin/girandole
USER 10001
ENV GIRANDOLE_CACHE_DIR=/home/girandole/models
VOLUME /home/girandole/models
EXPOSE 8080
# Within a container only the published port leads in; beyond loopback the service wants API keys
# (GIRANDOLE_API_KEY_FILE) or an explicit --allow-unauthenticated.
ENTRYPOINT ["girandole"]
CMD ["serve", "--host", "0.0.0.0"]
