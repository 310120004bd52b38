#!/usr/bin/env bash
# Python virtual environments for the executor's tests and checks, each made once from requirements/NAME.txt.
# Owns them in the cache: an environment is complete when its file .complete is there, which is written last.
set -euo pipefail

usage() {
  cat >&2 <<END
usage: venv.sh NAME             make the environment of requirements/NAME.txt once and print the directory it is in;
                                as root on Debian or Ubuntu, install what making one needs
       venv.sh need-postgres    check for PostgreSQL's server; as root on Debian or Ubuntu, install it
       venv.sh need-redis       the same for Redis, which the benchmark uses
NAME is one of: $(names)
The cache is \$AIRKAFKA_CACHE, else airkafka-worker in \$XDG_CACHE_HOME or ~/.cache.
Exit codes: 1 failed, 2 usage, 3 Python, PostgreSQL or Redis missing.
END
  exit 2
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)

say() { printf 'venv.sh: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

names() {
  local file list=''
  for file in "$here"/requirements/*.txt; do
    file=${file##*/}
    list+="${list:+, }${file%.txt}"
  done
  printf '%s\n' "$list"
}

# The same as that of fixtures/broker/kafka.sh.
cache_dir() {
  local base=${XDG_CACHE_HOME:-${HOME:+$HOME/.cache}}
  printf '%s\n' "${AIRKAFKA_CACHE:-${base:-${TMPDIR:-/tmp}/cache-$(id -u)}/airkafka-worker}"
}

# --- what is needed ---------------------------------------------------------------------------------------------------

# Installs PACKAGE with apt-get if we are root and it is there.
install() {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 0
  say "installing with apt-get: $1"
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update >&2 </dev/null || true
  apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$1" >&2 </dev/null || true
  hash -r
}

# The line by which a human gets PACKAGE; where apt-get is not there, the words for it.
line_for() {
  local line="apt-get update && apt-get install -y $1"
  if ! command -v apt-get >/dev/null; then
    printf '%s\n' "$2"
  elif [ "$(id -u)" = 0 ]; then
    printf '%s\n' "$line"
  else
    printf "sudo sh -c '%s'\n" "$line"
  fi
}

# The first Python that the environments can be made with: Airflow 2.11 is for none above 3.12, and some packages that
# the requirements name are for none below 3.11. What is on PATH need not run: it may be a shim for a version that is
# not chosen.
find_python() {
  local python
  for python in python3.12 python3.11 python3; do
    if "$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' \
      </dev/null >/dev/null 2>&1; then
      printf '%s\n' "$python"
      return
    fi
  done
  return 1
}

need_python() {
  find_python && return
  install python3-venv
  find_python && return
  say "Python 3.11 or 3.12 with venv and ensurepip is missing: $(line_for python3-venv 'install Python 3.12')"
  say "if the system's own Python is another one, install Python 3.12 beside it and put python3.12 on PATH"
  exit 3
}

have_postgres() {
  local program
  for program in /usr/lib/postgresql/*/bin/initdb; do
    [ ! -x "$program" ] || return 0
  done
  command -v initdb >/dev/null
}

need_postgres() {
  have_postgres && return
  install postgresql
  have_postgres && return
  say "PostgreSQL is missing: $(line_for postgresql "install PostgreSQL's server, and put initdb on PATH")"
  exit 3
}

need_redis() {
  command -v redis-server >/dev/null && return
  install redis-server
  command -v redis-server >/dev/null && return
  say "Redis is missing: $(line_for redis-server "install Redis, and put redis-server on PATH")"
  exit 3
}

# --- the environments -------------------------------------------------------------------------------------------------

# Its Python has to run as well: it is a link to the one it was made with, which may be gone.
is_complete() { [ -e "$1/.complete" ] && "$1/bin/python" -c '' </dev/null >/dev/null 2>&1; }

# An environment cannot be moved, since its scripts hold its path: it is made in its place.
environment() {
  local name=$1 requirements=$here/requirements/$1.txt cache python hash target
  [ -f "$requirements" ] || usage
  cache=$(cache_dir)
  mkdir -p "$cache" || die "cannot create the cache $cache; name another place with AIRKAFKA_CACHE"
  cache=$(cd "$cache" && pwd -P)
  python=$(need_python)
  hash=$({ "$python" -V && cat "$requirements"; } | sha256sum)
  target=$cache/python-$name-${hash:0:12}
  if ! is_complete "$target"; then
    ( # one at a time; the second finds the work done, and clears up after one that was cut off
      if command -v flock >/dev/null; then flock 9; fi
      ! is_complete "$target" || exit 0
      rm -rf "$target"
      say "making the environment $name with $("$python" -V)"
      "$python" -m venv "$target" </dev/null >&2 9>&- || die "$python cannot make an environment"
      "$target/bin/python" -m pip --disable-pip-version-check --no-input install --quiet -r "$requirements" \
        </dev/null >"$target/pip.log" 2>&1 9>&- ||
        { tail -n 20 "$target/pip.log" >&2; die "pip could not install $requirements; is the network there?"; }
      : >"$target/.complete"
    ) 9>>"$target.lock"
  fi
  printf '%s\n' "$target"
}

[ $# -eq 1 ] || usage
case $1 in
  need-postgres) need_postgres ;;
  need-redis) need_redis ;;
  '' | *[!A-Za-z0-9._-]*) usage ;;
  *) environment "$1" ;;
esac
