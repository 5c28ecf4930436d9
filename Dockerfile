# mmfuse with CUDA; on a machine without a GPU it runs on the CPU. It hasn't been built where it was written.
#
#   docker build -t mmfuse .
#   docker run --rm --gpus all --shm-size 2g -v "$PWD/data:/mmfuse/data" -v "$PWD/runs:/mmfuse/runs" mmfuse \
#       train configs/roadscene/rgb_thermal.yaml --out runs/fused
#
# For a CPU alone, without 5 GB of CUDA (and run it without --gpus):
#
#   docker build -t mmfuse --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu .
FROM python:3.12-slim
ARG PIP_EXTRA_INDEX_URL=""
RUN apt-get update \
    && apt-get install -y --no-install-recommends make libusb-1.0-0 libgl1 libegl1 libx11-6 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /mmfuse
COPY pyproject.toml Makefile README.md LICENSE ./
COPY mmfuse mmfuse
COPY configs configs
COPY datasets datasets
RUN make .venv/.installed
ENV PATH=/mmfuse/.venv/bin:$PATH
ENTRYPOINT ["mmfuse"]
CMD ["--help"]
