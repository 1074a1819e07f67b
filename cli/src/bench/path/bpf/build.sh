#!/bin/sh
# Builds path.bpf.o from path.bpf.c. The bytes do not depend on the directory, but on the compiler:
# clang 14 is the one that the committed object was built with. An argument names another output.
set -eu
output=${1:-}
case "$output" in
    '') output=path.bpf.o ;;
    /*) ;;
    *) output=$PWD/$output ;;
esac
cd "$(dirname "$0")"
clang-14 -O2 -g -target bpf -mcpu=v3 -Wall -Wextra -Werror -fno-ident \
    -fdebug-compilation-dir=. -c path.bpf.c -o "$output"
llvm-strip-14 -g "$output"
