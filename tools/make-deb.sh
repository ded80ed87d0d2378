#!/bin/sh
# Makes libkigo0 and libkigo-dev from what `make install` installs and from packaging/debian. Needs dpkg-dev.
#
# usage: tools/make-deb.sh VERSION OUTPUT_DIRECTORY
# environment: MAKE (default: make), SOURCE_DATE_EPOCH (default: the last commit, so that packages can be reproduced)
set -eu

if [ $# -ne 2 ]; then
    echo "usage: $0 VERSION OUTPUT_DIRECTORY" >&2
    exit 2
fi
version=$1-1
output=$2
control=packaging/debian/control
architecture=$(dpkg-architecture -qDEB_HOST_ARCH)
libdir=/usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH

rm -rf "$output"
roots=$output/debian
mkdir -p "$roots/libkigo0$libdir" "$roots/libkigo-dev"
"${MAKE:-make}" -s install DESTDIR="$PWD/$roots/libkigo-dev" PREFIX=/usr LIBDIR="$libdir"
mv "$roots/libkigo-dev$libdir"/libkigo.so.* "$roots/libkigo0$libdir"
cp "$control" "$roots"
chmod 644 "$roots/libkigo0$libdir"/libkigo.so.*.*

changelog() {
    printf 'kigo (%s) unstable; urgency=medium\n\n  * See CHANGELOG.md of the sources.\n\n' "$version"
    printf ' -- %s  %s\n' "$(sed -n 's/^Maintainer: //p' "$control")" "$(LC_ALL=C date -uR -d "@$SOURCE_DATE_EPOCH")"
}
changelog > "$roots/changelog"

# What the library needs of the system: the oldest packages that have the symbols that it uses.
depends=$(cd "$output" && dpkg-shlibdeps -O debian/libkigo0"$libdir"/libkigo.so.*.*)
depends=${depends#shlibs:Depends=}

for package in libkigo0 libkigo-dev; do
    root=$roots/$package
    docs=$root/usr/share/doc/$package
    mkdir -p "$docs" "$root/DEBIAN"
    sed -e '/^@MIT@$/{r /dev/stdin' -e 'd}' packaging/debian/copyright > "$docs/copyright" <<LICENCE
$(sed -e 's/^$/./' -e 's/^/ /' LICENSE-MIT)
LICENCE
    gzip -9n < "$roots/changelog" > "$docs/changelog.Debian.gz"
    if [ $package = libkigo0 ]; then
        printf 'libkigo 0 libkigo0 (>= %s)\n' "$1" > "$root/DEBIAN/shlibs"
        echo 'activate-noawait ldconfig' > "$root/DEBIAN/triggers"
        (cd "$output" && dpkg-gensymbols -q -plibkigo0 -v"$1" -Pdebian/libkigo0 -Odebian/libkigo0/DEBIAN/symbols)
    fi
    (cd "$root" && find usr -type f -exec md5sum {} +) > "$root/DEBIAN/md5sums"
    size=$(du -sk --apparent-size "$root/usr" | cut -f 1)
    {
        awk -v want="Package: $package" 'BEGIN { RS = ""; FS = "\n" } $1 == want' "$control" |
            sed -e "s/^Architecture: any/Architecture: $architecture/" -e "s/\${binary:Version}/$version/" \
                -e "s/\${shlibs:Depends}/$depends/"
        printf 'Source: kigo\nVersion: %s\nInstalled-Size: %s\n' "$version" "$size"
        sed -n -e '/^Maintainer: /p' -e '/^Priority: /p' "$control"
    } > "$root/DEBIAN/control"
    chmod -R u=rwX,go=rX "$root"
    dpkg-deb --root-owner-group -b "$root" "$output/${package}_${version}_$architecture.deb" > /dev/null
    echo "built $output/${package}_${version}_$architecture.deb"
done
