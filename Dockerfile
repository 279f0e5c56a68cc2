# `vlltr serve` in a container. By buildah it was built on Debian 12 with Python 3.11, in place of the image below, and
# answered; Docker itself was not tried.
#   docker build -t vlltr .
#   docker run -p 8000:8000 -v "$PWD/my-model:/model:ro" -e VLLTR_TOKEN="$(openssl rand -hex 32)" vlltr
# /model is a folder that `vlltr export` wrote, or a workspace. For --write it must not be read-only (:ro), and --user must
# be who owns it.
FROM python:3.12-slim

# torch without CUDA is much smaller: name an index that has it by --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_EXTRA_INDEX_URL

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY vlltr_index vlltr_index
COPY cli cli
COPY train train
COPY schemas schemas
COPY recipes recipes
RUN pip install --no-cache-dir ".[cpu,serve]" && useradd --create-home vlltr

USER vlltr
WORKDIR /home/vlltr
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["vlltr", "serve", "/model", "--host", "0.0.0.0"]
