#!/bin/sh
# Boots systemd as PID 1 of namespaces of its own: tests/kit/systemdbox.py runs this, as root.
#
#   systemdbox.sh probe            can it be done here? says why not on stderr
#   systemdbox.sh boot DIR         in a mount namespace of its own: make the others, and boot
#   systemdbox.sh pid1 DIR         the second half of boot, as PID 1; becomes systemd
#   systemdbox.sh clean DIR        in a mount namespace of its own: remove the cgroup
#
# DIR/opt is put at /opt, with the Python that is installed at $BOX_PYTHON in /opt/python, and
# DIR/local at /usr/local; DIR/etc, DIR/var and DIR/home are copied. Of /usr the rest is that of the
# system at $BOX_SYSTEM, / or another root, read-only. All else is in memory and goes with the
# namespaces; the cgroup, named as DIR, remains.
set -eu

mount() { command mount -n "$@"; } # -n: keep no list of mounts in /run

# The cgroup we are in, below a mount of cgroup2 (which shows the root of the cgroup namespace).
own_cgroup() {
    sed -n 's/^0:://p' /proc/self/cgroup | sed 's|^.*\.\..*$||; s|/$||'
}

read_only() { # SOURCE TARGET
    mount --rbind "$1" "$2"
    mount -o remount,bind,ro "$2"
}

probe() {
    mount -t tmpfs probe /mnt
    mkdir /mnt/cgroup
    mount -t cgroup2 probe /mnt/cgroup
    cgroup=/mnt/cgroup$(own_cgroup)/probe-$$
    mkdir "$cgroup"
    rmdir "$cgroup"
    unshare --cgroup --pid --fork --net --uts --ipc true
}

boot() { # DIR
    mount -t tmpfs -o mode=755 box "$1/mnt"
    mkdir "$1/mnt/cgroup" "$1/mnt/root"
    mount -t cgroup2 box "$1/mnt/cgroup"
    cgroup=$1/mnt/cgroup$(own_cgroup)/${1##*/}
    mkdir "$cgroup"
    echo $$ >"$cgroup/cgroup.procs"
    exec unshare --cgroup --pid --fork --kill-child --net --uts --ipc "$0" pid1 "$1"
}

clean() { # DIR
    mount -t cgroup2 box "$1/mnt"
    cgroup=$1/mnt$(own_cgroup)/${1##*/}
    [ -d "$cgroup" ] || return 0
    # The kernel may take a moment until it has seen the last process go.
    n=0
    until find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null; do
        n=$((n + 1))
        [ $n -lt 100 ] || return 1
        sleep 0.05
    done
}

pid1() { # DIR
    root=$1/mnt/root
    system=${BOX_SYSTEM%/}
    umount -n "$1/mnt/cgroup"
    mount -t tmpfs -o mode=755 box "$root"
    cd "$root"
    mkdir dev etc home mnt old opt proc run srv sys tmp usr var
    mkdir -m 700 root
    chmod 1777 tmp
    read_only "$system/usr" usr
    for d in bin sbin lib lib32 lib64 libx32; do
        if [ -L "$system/$d" ]; then
            cp -a "$system/$d" "$d"
        elif [ -d "$system/$d" ]; then # a system whose /usr is not merged
            mkdir "$d"
            read_only "$system/$d" "$d"
        fi
    done
    mount --bind "$1/opt" opt
    read_only "$BOX_PYTHON" opt/python
    mount --bind "$1/local" usr/local

    # Of its /etc what programs need to run at all; none of its secrets, none of its units.
    for f in ld.so.cache ld.so.conf ld.so.conf.d nsswitch.conf protocols services hosts pam.d \
        login.defs security alternatives localtime os-release passwd group; do
        if [ -e "$system/etc/$f" ]; then cp -a "$system/etc/$f" etc/; fi
    done
    tr -d - </proc/sys/kernel/random/uuid >etc/machine-id
    mkdir -p etc/systemd/system etc/systemd/journald.conf.d
    printf '[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\nForwardToSyslog=no\nAudit=no\n' \
        >etc/systemd/journald.conf.d/box.conf
    cp -r "$1/etc/." etc/
    mkdir -p var/cache var/lib var/log var/mail var/spool var/tmp
    chmod 1777 var/tmp
    ln -s ../run var/run
    cp -a "$1/var/." var/
    cp -a "$1/home/." home/

    # Debian's units, of which only the journal starts, and no generators.
    sd=/usr/lib/systemd
    [ -x "$system$sd/systemd" ] || sd=/lib/systemd
    units=$1/mnt/units
    mkdir "$units" "$1/mnt/empty"
    cp -a "$system$sd/system/." "$units/"
    rm -rf "$units"/*.wants "$units"/*.requires
    ln -sf multi-user.target "$units/default.target"
    mkdir "$units/sockets.target.wants"
    ln -s ../systemd-journald.socket ../systemd-journald-dev-log.socket \
        "$units/sockets.target.wants/"
    ln -sf /dev/null "$units/systemd-journald-audit.socket"
    mount --bind "$units" ".$sd/system"
    for d in system-generators system-environment-generators; do
        if [ -d ".$sd/$d" ]; then mount --bind "$1/mnt/empty" ".$sd/$d"; fi
    done

    mount -t proc -o nosuid,nodev,noexec proc proc
    for d in sys irq bus fs sysrq-trigger; do # the kernel's settings are the machine's
        if [ -e "proc/$d" ]; then read_only "proc/$d" "proc/$d"; fi
    done
    mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
    mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 sys/fs/cgroup

    mount -t tmpfs -o mode=755,nosuid box-dev dev
    for n in null zero full random urandom tty; do
        cp -a "/dev/$n" dev/ 2>/dev/null || { : >"dev/$n"; mount --bind "/dev/$n" "dev/$n"; }
    done
    ln -s /proc/self/fd dev/fd
    ln -s fd/0 dev/stdin
    ln -s fd/1 dev/stdout
    ln -s fd/2 dev/stderr
    ln -s pts/ptmx dev/ptmx
    mkdir dev/pts dev/shm dev/mqueue # all of them wanted by PrivateDevices=yes
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5,nosuid,noexec devpts dev/pts
    mount -t tmpfs -o mode=1777,nosuid,nodev box-shm dev/shm
    mount -t mqueue -o nosuid,nodev,noexec mqueue dev/mqueue
    mount -t tmpfs -o mode=755,nosuid,nodev box-run run
    : >run/box # what tells the box from the machine
    ip link set lo up

    pivot_root . old
    cd /
    umount -n -l /old
    rmdir /old
    mount --make-rshared / # as after an ordinary boot
    # Not in the box: loading kernel modules, setting the clock, reading the kernel's log.
    exec setpriv --bounding-set=-sys_module,-sys_rawio,-sys_time,-syslog,-mac_admin,-mac_override \
        env -i container=box TERM=dumb PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin \
        $sd/systemd --unit=default.target --show-status=0 --log-target=journal </dev/null
}

"$@"
