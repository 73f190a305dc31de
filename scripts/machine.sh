# What a machine must have to build and run this project, and how to get it.
# Sourced behind lib.sh. It knows nothing of what is then built or started.
# shellcheck shell=bash
# shellcheck disable=SC2154 # `project` and `cache` are lib.sh's.

# Debian's names of what is missing, and what is missing in words.
missing_packages=()
missing_words=()

# lacks PACKAGE WORDS
lacks() {
    missing_packages+=("$1")
    missing_words+=("$2")
}

# The names that clang-sys looks for. libclang-cpp.so, which many machines have, is
# another library: RocksDB's build would end without libclang after minutes.
has_libclang() {
    local folder file
    for folder in /usr/lib/llvm-*/lib /usr/lib/* /usr/lib* ${LIBCLANG_PATH:+"$LIBCLANG_PATH"}; do
        for file in "$folder"/libclang.so* "$folder"/libclang-[0-9]*.so*; do
            [[ -e $file ]] && return
        done
    done
    # macOS: Xcode's own, which clang-sys finds.
    [[ $(uname) == Darwin ]] && have clang
}

has_library() { have pkg-config && pkg-config --exists "$1"; }

look_for_build_tools() {
    { have c++ || have g++; } || lacks g++ "a C++ compiler"
    have make || lacks make "make"
    have pkg-config || lacks pkg-config "pkg-config"
    has_libclang || lacks libclang-dev "libclang, which reads RocksDB's headers"
    has_library zlib || lacks zlib1g-dev "zlib with its headers"
    has_library libzstd || lacks libzstd-dev "zstd with its headers"
    has_library liblz4 || lacks liblz4-dev "lz4 with its headers"
    has_library openssl || lacks libssl-dev "OpenSSL with its headers"
    # Without certificates, cargo cannot fetch anything.
    [[ $(uname) != Linux || -e /etc/ssl/certs/ca-certificates.crt || -e /etc/pki/tls/certs/ca-bundle.crt ]] ||
        lacks ca-certificates "the certificates of the web's authorities"
}

look_for_kafka_tools() {
    find_java >/dev/null || lacks java "Java 17 or newer"
    have mvn || lacks maven "Maven, which fetches Kafka's jars"
}

look_for_python() {
    { have python3 && python3 -c 'import ensurepip'; } 2>/dev/null || lacks python3-venv "Python 3 with venv"
}

# --- Installing --------------------------------------------------------------

as_root() {
    if ((EUID == 0)); then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        fail "this needs root, and there is no sudo. As root:
  $*"
    fi
}

has_candidate() {
    local candidate
    candidate=$(apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: //p')
    [[ -n $candidate && $candidate != "(none)" ]]
}

# The oldest Java that is new enough is the one that Debian's release is built with.
java_package() {
    local package
    for package in openjdk-17-jre-headless default-jre-headless; do
        if has_candidate "$package"; then
            printf '%s\n' "$package"
            return
        fi
    done
    fail "find a package with Java 17 or newer: install one from https://adoptium.net and set JAVA_HOME"
}

# One source of packages that cannot be reached need not matter: the installation tells.
refresh_apt() {
    say "reading the lists of packages: apt-get update"
    as_root apt-get update -q >&2 || true
}

apt_install() { as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; }

# Names everything that is missing before it installs any of it.
install_missing() {
    ((${#missing_words[@]} > 0)) || return 0
    say "this machine lacks:"
    printf '  %s\n' "${missing_words[@]}" >&2
    if ! have apt-get; then
        fail "install these with this system's package manager, then run this again.
Debian's names for them: ${missing_packages[*]/#java/openjdk-17-jre-headless}"
    fi
    refresh_apt
    local packages=() package
    for package in "${missing_packages[@]}"; do
        [[ $package != java ]] || package=$(java_package)
        packages+=("$package")
    done
    step "installing what is missing: apt-get install ${packages[*]}"
    apt_install "${packages[@]}" >&2
    missing_packages=()
    missing_words=()
}

# --- Rust --------------------------------------------------------------------

rust_lints=no

rust_needed() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "$project/Cargo.toml"; }

rust_version() { rustc --version 2>/dev/null | sed -n 's/^rustc \([0-9.]*\).*/\1/p'; }

# at_least VERSION MINIMUM
at_least() { [[ -n $1 && $(printf '%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }

rust_is_new_enough() { have cargo && at_least "$(rust_version)" "$(rust_needed)"; }

has_rust_lints() { cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1; }

rust_is_enough() { rust_is_new_enough && { [[ $rust_lints == no ]] || has_rust_lints; }; }

rust_advice() {
    cat <<TEXT
Rust $(rust_needed) or newer, with rustfmt and clippy, from https://rustup.rs:
  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c rustfmt -c clippy
where rustup is there already:
  rustup toolchain install stable --profile minimal -c rustfmt -c clippy && rustup default stable
TEXT
}

# ensure_rust [lints]: with rustfmt and clippy where lints are asked for. A
# distribution's own Rust where it is new enough, else rustup's stable one.
ensure_rust() {
    rust_lints=${1:-no}
    # rustup changes the path of new shells only.
    [[ ! -d ${CARGO_HOME:-$HOME/.cargo}/bin ]] || PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    hash -r
    rust_is_enough && return
    local found
    found=$(rust_version) || true
    say "this machine lacks Rust $(rust_needed) or newer${1:+, with rustfmt and clippy}${found:+ (it has rustc $found)}"
    if have rustup && rust_is_new_enough; then
        step "installing what is missing: rustup component add rustfmt clippy"
        rustup component add rustfmt clippy >&2 || true
    elif have rustup; then
        step "installing what is missing: rustup toolchain install stable"
        install_toolchain
    elif have apt-get; then
        install_rust_with_apt
    fi
    hash -r
    rust_is_enough || fail "Rust is still missing or too old. Wanted: $(rust_advice)"
}

install_rust_with_apt() {
    local version
    refresh_apt
    version=$(apt-cache policy rustc 2>/dev/null | sed -n 's/^ *Candidate: \([0-9.]*\).*/\1/p') || true
    if at_least "$version" "$(rust_needed)"; then
        step "installing what is missing: apt-get install rustc cargo rustfmt rust-clippy"
        apt_install rustc cargo rustfmt rust-clippy >&2
    elif has_candidate rustup; then
        step "installing what is missing: apt-get install rustup, then rustup toolchain install stable"
        apt_install rustup >&2
        install_toolchain
    else
        step "installing what is missing: Rust from https://rustup.rs, into ${CARGO_HOME:-$HOME/.cargo}"
        have curl || apt_install curl >&2
        run_rustup_init || fail "get Rust from https://rustup.rs. Wanted: $(rust_advice)"
        PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    fi
}

run_rustup_init() {
    mkdir -p "$cache"
    curl --proto '=https' --tlsv1.2 -sSf --max-time 60 https://sh.rustup.rs -o "$cache/rustup-init.sh" &&
        sh "$cache/rustup-init.sh" -y --no-modify-path --profile minimal -c rustfmt -c clippy >&2
}

# Beside whatever is the user's default, which stays as it is.
install_toolchain() {
    rustup toolchain install stable --profile minimal -c rustfmt -c clippy >&2 ||
        fail "install a Rust toolchain with rustup. Wanted: $(rust_advice)"
    export RUSTUP_TOOLCHAIN=stable
}

# --- Python ------------------------------------------------------------------

# Python with the Kafka client of examples/python, in an environment of its own.
ensure_python_client() {
    python=$cache/examples-python/bin/python
    [[ -x $python ]] || python3 -m venv "$cache/examples-python"
    "$python" -m pip install -q --disable-pip-version-check -r "$project/examples/python/requirements.txt" >&2 ||
        fail "install what examples/python/requirements.txt names"
}
