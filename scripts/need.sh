# Sourced, not run: brings a command that a script needs, from Debian's packages if need be.
#
# The script that sources this defines `logs`, a folder for what apt says, and `skip`, which gets the reason why
# something cannot be had and does not return. It removes `$logs/apt-updated` when it starts.

# need COMMAND PACKAGE...: the command, from these packages if it is not there.
need() {
    local command=$1
    shift
    if is_there "$command"; then return; fi
    command -v apt-get >/dev/null || skip "$command is missing, and there is no apt-get"
    [ "$(id -u)" -eq 0 ] || skip "$command is missing: apt-get install $*"
    echo "installing $*"
    if [ ! -e "$logs/apt-updated" ]; then
        apt-get update >"$logs/apt.log" 2>&1 || true
        touch "$logs/apt-updated"
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >>"$logs/apt.log" 2>&1 || true
    is_there "$command" || skip "$command is missing, and apt-get install $* did not bring it"
}

is_there() {
    command -v "$1" >/dev/null || return 1
    # Debian's python3 comes without what makes virtual environments.
    [ "$1" != python3 ] || python3 -c 'import ensurepip, venv' 2>/dev/null
}
