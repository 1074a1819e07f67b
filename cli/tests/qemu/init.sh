#!/bin/busybox sh
# The first process of the machine: mounts, loads the modules, then runs what comes line by line.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mkdir -p /dev/net
exec </dev/ttyS1 >/dev/ttyS1 2>&1
stty raw -echo
failed=0
for module in /modules/*.ko; do
  insmod "$module" || failed=1
done
[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
ip link set lo up
echo "egret-guest-end $failed"
while IFS= read -r line; do
  [ "$line" = exit ] && break
  eval "$line"
  echo "egret-guest-end $?"
done
poweroff -f
