# Sourced by the other scripts: gives `root`, and `install EXTRA...`, which makes .venv in the repository's root once and
# installs the package there again only after pyproject.toml has changed. Sets `python` to that environment's interpreter.
# After `use_environment NAME` all of this is about another virtual environment there.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

use_environment() {
    environment="$root/$1"
    python="$environment/bin/python"
}

use_environment .venv
is_new_enough='import sys; sys.exit(sys.version_info < (3, 11))'

# Prints the first Python of the right age, or says what to do. PYTHON=... in the environment goes first.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c "$is_new_enough" >/dev/null 2>&1; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    printf '%s\n' "dask_belief needs Python 3.11 or newer; found $(python3 --version 2>&1 || true)." \
        "Install one, or name it: PYTHON=/path/to/python3.12 $0" >&2
    return 1
}

make_environment() {
    local base
    base="$(find_python)" || return
    printf '%s\n' "Making a virtual environment in $environment ($("$base" --version))" >&2
    if ! "$base" -m venv --clear "$environment"; then
        printf '%s\n' "$base cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2
        return 1
    fi
}

# install EXTRA...: the package, editable, with these extras of pyproject.toml. Its status tells whether they are there;
# each step tells it by itself, since bash does not heed `set -e` within `install ... || ...`.
install() {
    local extra stale=""
    # Both also fail for an environment that was moved, half made, or whose Python has been removed.
    if ! "$python" -c "$is_new_enough" >/dev/null 2>&1 || ! "$python" -m pip --version >/dev/null 2>&1; then
        make_environment || return
    fi
    # The stamp of an extra is the pyproject.toml that it was installed from: no network is needed while it is the same.
    for extra in "$@"; do
        cmp -s "$root/pyproject.toml" "$environment/installed-$extra.toml" || stale=yes
    done
    if [ -n "$stale" ]; then
        printf '%s\n' "Installing dask_belief and its requirements ($*)" >&2
        "$python" -m pip install --quiet --disable-pip-version-check --editable "$root[$(IFS=,; printf '%s' "$*")]" >&2 ||
            return
        for extra in "$@"; do
            cp "$root/pyproject.toml" "$environment/installed-$extra.toml" || return
        done
    fi
}
