# Stands in for postgres:17.5-alpine, which no registry is asked for: another release, the same contract of user, folders and variables.
FROM debian:12.11
RUN apt-get update && apt-get install -y --no-install-recommends postgresql-15 && rm -rf /var/lib/apt/lists/*
RUN userdel postgres && groupadd --gid 70 postgres && useradd --uid 70 --gid 70 postgres
ENV PATH=/usr/lib/postgresql/15/bin:/usr/local/bin:/usr/bin LANG=C.UTF-8
COPY postgres-entrypoint.sh /usr/local/bin/
CMD ["postgres-entrypoint.sh"]
