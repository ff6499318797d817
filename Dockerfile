# An image with the project's environment and command line, for CPUs or, with another index of torch, for NVIDIA GPUs:
#   docker build --tag vaebm .
#   docker build --tag vaebm --build-arg TORCH=https://download.pytorch.org/whl/cu130 .
FROM python:3.11-slim-bookworm
ARG TORCH=https://download.pytorch.org/whl/cpu

# Git is for DVC, and for the commit that results name. Its version follows the base image's.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/*

# All dependencies in one layer, which a change of the code does not build again.
WORKDIR /usr/src/vaebm
COPY constraints.txt pyproject.toml README.md ./
RUN mkdir vaebm \
    && touch vaebm/__init__.py \
    && python -m pip install --no-cache-dir --constraint constraints.txt --extra-index-url "${TORCH}" '.[pipeline]'

COPY vaebm vaebm
RUN python -m pip install --no-cache-dir --no-deps --force-reinstall . \
    && useradd --create-home --uid 1000 vaebm

USER 1000
WORKDIR /project
CMD ["vaebm", "--help"]
