# The ssh client beside the API that reaches a rented server; see the profile `vast` of docker-compose.yml.
FROM python:3.13-slim AS tunnel
RUN apt-get update \
    && apt-get install -y --no-install-recommends openssh-client \
    && rm -rf /var/lib/apt/lists/*

# The controller of hosts that follow the queue: beside what the API has, the clients of the clouds, ssh and rsync.
FROM python:3.13-slim AS capacity
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN apt-get update \
    && apt-get install -y --no-install-recommends openssh-client rsync \
    && rm -rf /var/lib/apt/lists/* \
    # ssh asks for the name of its user.
    && useradd --uid 10001 --create-home tickets \
    && install -d -o tickets -g tickets /var/lib/capacity
WORKDIR /srv
COPY requirements-capacity.txt .
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
    --require-hashes --no-deps -r requirements-capacity.txt
COPY alembic.ini .
COPY migrations migrations
COPY app app
COPY nvidia_triton nvidia_triton
# What is deployed to hosts; mount your own folder over it, or build with it here.
COPY models models
# Keys of hosts that it has met, of this process alone: each host is made anew.
ENV LOCAL_DIR=/var/lib/capacity
USER 10001:10001
CMD ["python", "-m", "app.capacity"]

# The API, the dispatcher and the migrations. Last, so that `docker build .` makes this one.
FROM python:3.13-slim AS app
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /srv
COPY requirements.txt .
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
    --require-hashes --no-deps -r requirements.txt
COPY alembic.ini .
COPY migrations migrations
COPY app app
# The chat templates; mount your own folder over it, or build with it here.
COPY models models
# A number, so that an orchestrator can tell that it is not root.
USER 10001:10001
EXPOSE 8887
CMD ["python", "-m", "app.main"]
