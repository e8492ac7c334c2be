#!/usr/bin/env bash
# The system libraries that napari (a virtual screen, OpenGL, Qt's window plugin) and the browser tests (Chromium) need.
#   missing           print the packages that are not installed, one a line
#   install           install them as root; print the command otherwise
#   install-if-root   the same for `make test`: nothing to do in silence, and never a reason to stop
set -euo pipefail

packages=(
    xvfb xauth                                                   # a screen without a monitor
    libgl1 libegl1 libopengl0 libgl1-mesa-dri                    # OpenGL in software
    libxkbcommon-x11-0 libxcb-cursor0 libxcb-icccm4 libxcb-image0 libxcb-keysyms1 libxcb-render-util0 libxcb-shape0 libdbus-1-3  # Qt
    chromium fonts-dejavu-core                                   # browser tests
)

LONGEST_WAIT=600 # seconds

missing() {
    local installed package
    installed=" $(dpkg-query --show --showformat='${Package}=${db:Status-Status} ' "${packages[@]}" 2>/dev/null || true)"
    for package in "${packages[@]}"; do
        if [[ $package == chromium ]] && command -v chromium chromium-browser google-chrome >/dev/null; then continue; fi
        [[ $installed == *" $package=installed "* ]] || echo "$package"
    done
}

# apt-get, once whoever else installs packages here has ended. It waits for dpkg's lock itself, but not for the locks of
# its lists and downloads (apt 2.6), so it is asked again.
patient_apt_get() {
    local said
    { until said=$(LC_ALL=C apt-get "$@" -o "DPkg::Lock::Timeout=$LONGEST_WAIT" 2>&1 1>&3); do
        echo "$said" >&2
        [[ $said == *"Could not get lock"* ]] && ((SECONDS < LONGEST_WAIT)) || return 1
        echo "System libraries: asking again in 5 seconds" >&2
        sleep 5
    done; } 3>&1
}

install() {
    if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
        echo "System libraries: this machine has no apt-get. Install what corresponds to these Debian packages: ${packages[*]}"
        return 1
    fi
    local wanted available=() unknown=() package
    wanted=$(missing)
    if [[ -z $wanted ]]; then
        echo "System libraries: all ${#packages[@]} packages are installed."
        return 0
    fi
    if [[ $(id -u) != 0 ]]; then
        echo "System libraries missing:" $wanted
        echo "To install them: sudo apt-get update && sudo apt-get install --no-install-recommends" $wanted
        return 1
    fi
    echo "System libraries: installing" $wanted
    export DEBIAN_FRONTEND=noninteractive
    patient_apt_get update -qq
    for package in $wanted; do
        if apt-cache show "$package" >/dev/null 2>&1; then available+=("$package"); else unknown+=("$package"); fi
    done
    if ((${#available[@]})); then patient_apt_get install -y -qq --no-install-recommends "${available[@]}"; fi
    if ((${#unknown[@]})); then
        echo "System libraries: this distribution has no package named ${unknown[*]}; install what corresponds by hand."
        return 1
    fi
}

case "${1:-}" in
    missing) missing ;;
    install) install ;;
    install-if-root)
        if command -v dpkg-query >/dev/null && [[ -z $(missing) ]]; then exit 0; fi
        install || echo "Going on without them: tests that need a screen or a browser skip (or fail, where LAB_REQUIRE names opengl or browser)."
        ;;
    *)
        echo "usage: $0 missing | install | install-if-root" >&2
        exit 2
        ;;
esac
