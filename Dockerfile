# llmcompress on the CPU, as a user who is not root:
#   docker build -t llmcompress .
#   docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" llmcompress compress SOURCE -r int4 -o OUT
FROM python:3.12-slim

COPY . /opt/llmcompress-clone
RUN sh /opt/llmcompress-clone/scripts/install.sh /opt/llmcompress && rm -rf /opt/llmcompress-clone /root/.cache

RUN useradd --create-home llmcompress && install --directory --mode 777 /work /cache
# The caches of this program, of the Hub's files and of compiled kernels, for whatever user runs it.
ENV XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface HOME=/home/llmcompress
USER llmcompress
WORKDIR /work
ENTRYPOINT ["/opt/llmcompress/bin/llmcompress"]
CMD ["--help"]
