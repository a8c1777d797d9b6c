#!/bin/sh
# Vendor NiiVue into static/: the single file of the npm package, unchanged, and its licences.
# Needs npm and sha256sum; run it again after raising VERSION and say the new SHA256.
set -eu
VERSION=0.69.0
SHA256=47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af
static=$(cd "$(dirname "$0")" && pwd)/static
aside=$(mktemp -d)
trap 'rm -rf "$aside"' EXIT
cd "$aside"

npm install --silent --no-save --ignore-scripts --omit=dev --omit=optional "@niivue/niivue@$VERSION"
bundle=node_modules/@niivue/niivue/dist/niivue.umd.js
echo "$SHA256  $bundle" | sha256sum --check --quiet
cp "$bundle" "$static/niivue.umd.js"

# the package names its licence (BSD-2-Clause) without its text, which is kept at the head of the file
sed '/^=====/,$d' "$static/niivue.LICENSE.txt" >niivue.txt
{
    cat niivue.txt
    find node_modules -iname 'licen[sc]e*' -not -path '*/@niivue/*' | LC_ALL=C sort | while read -r file; do
        name=${file#node_modules/}
        printf '===== %s, part of the bundle\n\n' "${name%/*}"
        cat "$file"
        printf '\n'
    done
} >"$static/niivue.LICENSE.txt"
