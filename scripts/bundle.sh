#!/usr/bin/env bash
# One folder under 40 MiB with all that scripts/gpu_suite.sh needs on a machine that has the NVIDIA driver and the CUDA libraries, but
# no compiler and none of our libraries:  scripts/bundle.sh [DIR]   (default: build/bundle)
#   bin/      stripped programs for any processor of the last ten years; they look for libraries in ../lib first
#   lib/      the libraries beside them, except glibc and CUDA's; the reference BLAS is linked in
#   demo/     model and token files       tests/data/ known answers       scripts/gpu_suite.sh       COMMIT
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/bundle}
command -v nvcc >/dev/null || [ ! -x /usr/local/cuda/bin/nvcc ] || export PATH="$PATH:/usr/local/cuda/bin"
system=/usr/lib/$(gcc -print-multiarch)
limit=$((40 << 20))

# Fortran's runtime comes from a folder that names nothing but the static one, of which little is used.
static=$PWD/build/bundle-objects/static
mkdir -p "$static"
echo "INPUT($(gcc -print-file-name=libgfortran.a) $(gcc -print-file-name=libquadmath.a))" >"$static/libgfortran.a"
# Last on the line, LAPACK finds what it needs of BLAS.
last="$system/lapack/liblapack.a $system/blas/libblas.a -lgfortran"

# RPATH, not RUNPATH: it also holds for the libraries that the libraries want.
cmake -S . -B build/bundle-objects -G Ninja -DCMAKE_BUILD_TYPE=Release -DQALIB_MARCH=x86-64-v3 -DQALIB_CUDA=ON \
    -DBLA_VENDOR=Generic -DBLA_STATIC=ON -DCMAKE_LIBRARY_PATH="$system/blas;$system/lapack" \
    -DCMAKE_CXX_STANDARD_LIBRARIES="$last" -DCMAKE_CUDA_STANDARD_LIBRARIES="$last" \
    -DCMAKE_CUDA_FLAGS=--compress-mode=size -DCMAKE_BUILD_RPATH='$ORIGIN/../lib;/usr/local/cuda/lib64' \
    -DCMAKE_EXE_LINKER_FLAGS="-Wl,--disable-new-dtags -static-libstdc++ -static-libgcc -L$static"
cmake --build build/bundle-objects --target qalib test_operations test_fragments test_hopper stats_distance

rm -rf "$out"
mkdir -p "$out/bin" "$out/lib" "$out/scripts"
for program in qalib test_operations test_fragments test_hopper stats_distance; do
    strip -o "$out/bin/$program" "build/bundle-objects/$program"
done
[ ! -d demo ] || cp -r demo "$out/"
mkdir -p "$out/tests/data"
cp -r tests/data/ggml "$out/tests/data/"
cp scripts/gpu_suite.sh "$out/scripts/"
git describe --always --dirty --abbrev=40 >"$out/COMMIT"

# What the programs load, less what every such machine has.
ldd "$out"/bin/* | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
    grep -vE '/(libc|libm|libdl|libpthread|librt|libresolv|ld-linux[^/]*)\.so' |
    grep -vE '/lib(cublas|cublasLt|cusolver|cusparse|nvJitLink)' |
    while read -r library; do
        cp -L "$library" "$out/lib/"
        strip --strip-unneeded "$out/lib/$(basename "$library")"
    done

size=$(du -sb "$out" | cut -f1)
echo "bundle: $out, $((size >> 20)).$(((size * 10 >> 20) % 10)) MiB, $(cat "$out/COMMIT")"
if [ "$size" -ge $limit ]; then
    echo "bundle: $size bytes, the limit is $limit" >&2
    exit 1
fi
