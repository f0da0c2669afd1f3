# shellcheck shell=bash
# What the two README commands need beside this repository: looked for, installed with apt-get where that is allowed, and
# named in one line each where it is not. Sourced by tools/quickstart and tools/test.

missing_packages=()
missing_reasons=()

# need PACKAGE REASON CHECK...   notes the package when the check fails
need() {
  local package=$1 reason=$2
  shift 2
  if ! "$@" >/dev/null 2>&1; then
    missing_packages+=("$package")
    missing_reasons+=("$package: $reason")
  fi
}

has_library() {
  { /sbin/ldconfig -p || ldconfig -p; } 2>/dev/null | grep -q "$1"
}

# Java 17 is what Flume, Hadoop and these tests run on together; the default one where a release has no 17.
jdk_package() {
  if apt-cache show openjdk-17-jdk-headless >/dev/null 2>&1; then
    echo openjdk-17-jdk-headless
  else
    echo default-jdk-headless
  fi
}

# Installs what `need` has noted. Returns 1 when something is still missing, after one line for each.
install_missing() {
  [ ${#missing_packages[@]} -eq 0 ] && return 0
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
      as_root=(sudo -n)
    else
      printf 'missing: %s\n' "${missing_reasons[@]}"
      echo "cannot install it without root; run: sudo apt-get install ${missing_packages[*]}"
      return 1
    fi
  fi
  if ! command -v apt-get >/dev/null 2>&1; then
    printf 'missing: %s\n' "${missing_reasons[@]}"
    echo "cannot install it: this is no Debian or Ubuntu (no apt-get)"
    return 1
  fi
  echo "installing ${missing_packages[*]}"
  "${as_root[@]}" apt-get update -qq >/dev/null 2>&1
  local package failed=0
  for package in "${missing_packages[@]}"; do
    [ "$package" = jdk ] && package=$(jdk_package)
    if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/tmp/penstock-apt.$$ 2>&1; then
      echo "cannot install $package: $(grep -m1 '^E:' /tmp/penstock-apt.$$ || tail -n 1 /tmp/penstock-apt.$$)"
      failed=1
    fi
    rm -f /tmp/penstock-apt.$$
  done
  return $failed
}

# Rust comes from rustup.rs and not from the distribution, whose compilers are older than this code.
RUST_MINIMUM=1.95
need_rust() {
  [ -d "$HOME/.cargo/bin" ] && PATH="$HOME/.cargo/bin:$PATH"
  if ! command -v cargo >/dev/null 2>&1; then
    echo "cannot install Rust by itself; get $RUST_MINIMUM or newer from https://rustup.rs, then run this again"
    return 1
  fi
  local version
  version=$(cargo --version | cut -d' ' -f2)
  if [ "$(printf '%s\n%s\n' "$RUST_MINIMUM" "$version" | sort -V | head -n 1)" != "$RUST_MINIMUM" ]; then
    echo "cargo is $version, this code needs $RUST_MINIMUM or newer; run: rustup update stable"
    return 1
  fi
}
