#!/bin/sh
# Collects the files of the image: kube-proxy, both flavours of iptables, their libraries, nothing else.
# Usage: image-root.sh ROOT PROGRAM [slim]. `slim`: without iptables, for nodes whose iptables is the nf_tables flavour, and for nftables mode.
# Runs on Debian or Ubuntu with the packages ca-certificates, libssl3 and, but for `slim`, iptables installed.
set -eu
root=$1 program=$2 kind=${3:-full}
case $kind in full | slim) ;; *) echo "image-root.sh: unknown kind of image: $kind" >&2; exit 2 ;; esac

mkdir -p "$root/usr/local/bin" "$root/usr/sbin" "$root/etc"
# Mount points, which cannot be created in a read-only root.
for folder in dev proc sys tmp run lib/modules var/lib/kube-proxy var/run/secrets/kubernetes.io/serviceaccount; do
  mkdir -p "$root/$folder"
done
cp "$program" "$root/usr/local/bin/kube-proxy"

add_iptables() {
  for flavour in nft legacy; do
    cp "/usr/sbin/xtables-$flavour-multi" "$root/usr/sbin/"
    for tool in iptables ip6tables; do
      for suffix in '' -save -restore; do
        ln -sf "xtables-$flavour-multi" "$root/usr/sbin/$tool-$flavour$suffix"
      done
    done
  done
  # Without a hint of the kubelet: the nf_tables flavour, as in most distributions.
  for tool in iptables ip6tables; do
    for suffix in '' -save -restore; do ln -sf xtables-nft-multi "$root/usr/sbin/$tool$suffix"; done
  done

  # All extensions, since rules of other programs are read too.
  extensions=$(dirname "$(find /usr/lib -name libxt_conntrack.so | head -n 1)")
  mkdir -p "$root$extensions"
  cp -a "$extensions/." "$root$extensions/"
}

extensions=""
programs=$program
packages="ca-certificates libc6 libgcc-s1 libssl3"
if [ "$kind" = full ]; then
  add_iptables
  programs="$program /usr/sbin/xtables-nft-multi /usr/sbin/xtables-legacy-multi $(echo "$extensions"/*.so)"
  packages="$packages iptables libip4tc2 libip6tc2 libmnl0 libnetfilter-conntrack3 libnfnetlink0 libnftnl11 libxtables12"
fi

libraries=$(ldd $programs |
  sed -n 's,.* => \(/[^ ]*\) (0x.*,\1,p; s,^[[:space:]]*\(/[^ ]*ld-[^ ]*\) (0x.*,\1,p' | sort -u)
for library in $libraries; do
  mkdir -p "$root$(dirname "$library")"
  cp -L "$library" "$root$library"
done

# For API servers whose certificate is signed by one of the public authorities.
mkdir -p "$root/etc/ssl/certs"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
# Name lookup of API servers.
echo 'hosts: files dns' > "$root/etc/nsswitch.conf"

# The licences of these packages must be distributed with them.
for package in $packages; do
  if [ -e "/usr/share/doc/$package/copyright" ]; then
    mkdir -p "$root/usr/share/doc/$package"
    cp -L "/usr/share/doc/$package/copyright" "$root/usr/share/doc/$package/"
  fi
done
