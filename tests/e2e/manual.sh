#!/usr/bin/env bash
# --help, manual pages and completion say the same, and shells and man take them.
source "$(dirname "$0")/../e2e_lib.sh"
export COLUMNS=100

daemon=$build/qalibd
[ -x "$daemon" ] || daemon=
cmake/documents.sh "$tmp/share" "$qalib" $daemon
bash_file=$tmp/share/bash-completion/completions/qalib zsh_file=$tmp/share/zsh/site-functions/_qalib
mapfile -t commands < <("$qalib" --help | awk '/^Commands:/ { on = 1; next } /^$/ { on = 0 } on && /^  [a-z]/ { print $1 }')
[ ${#commands[@]} -gt 20 ] || fail "no commands in --help"

# page NAME SECTION: as a reader sees it, without hyphenation; warnings of groff are failures.
page() {
    local warnings
    warnings=$(man --warnings=w -l -Tutf8 -E UTF-8 -Z "$tmp/share/man/man$2/$1.$2" 2>&1 >/dev/null) || true
    [ -z "$warnings" ] || fail "$1.$2: $warnings"
    MANWIDTH=1000 man --no-hyphenation --no-justification -l "$tmp/share/man/man$2/$1.$2" 2>/dev/null | col -b
}
has_pages=yes
command -v scdoc >/dev/null && command -v man >/dev/null || { has_pages=; echo "skip: no scdoc or no man, pages are not looked at"; }

# Every option of --help, with its meaning, stands in the page, and by name in both completions of that command.
agree() { # COMMAND PAGE SECTION PROGRAM...
    local command=$1 name=$2 section=$3 seen= option options
    shift 3
    "$@" --help >"$tmp/help"
    options=$(grep -oE '^  (-[a-zA-Z], |    )?--[a-z0-9-]+' "$tmp/help" | grep -oE -- '--[a-z0-9-]+')
    [ -n "$options" ] || fail "$command: --help has no options"
    if [ $has_pages ]; then page "$name" "$section" >"$tmp/page"; fi
    sed -n "/^    $command)/,/^        positional/p" "$bash_file" | grep "^        options=" >"$tmp/bash" || true
    sed -n "/^    $command) _arguments/,/ ;;$/p" "$zsh_file" >"$tmp/zsh"
    for option in $options; do
        [ ! $has_pages ] || grep -qE -- "^ +(-[a-zA-Z], )?$option( |,|$)" "$tmp/page" || fail "$name.$section lacks $option"
        [ "$command" = qalibd ] && continue
        grep -q -- "[ ']$option " "$tmp/bash" || fail "bash completion of $command lacks $option"
        grep -qE -- "$option([^a-z0-9-]|$)" "$tmp/zsh" || fail "zsh completion of $command lacks $option"
    done
    [ $has_pages ] || return 0
    # The other way round: what the page names, --help has.
    for option in $(sed -n '/^[A-Z]*OPTIONS\|^COMMON\|^RECIPE/,/^EXAMPLES\|^EXIT/p' "$tmp/page" | grep -oE '^ +(-[a-zA-Z], )?--[a-z0-9-]+' | grep -oE -- '--[a-z0-9-]+'); do
        grep -qE -- "^ .*$option( |,|$)" "$tmp/help" || fail "$name.$section has $option, --help has not"
    done
}
for command in "${commands[@]}"; do agree "$command" "qalib-$command" 1 "$qalib" "$command"; done
[ ! "$daemon" ] || agree qalibd qalibd 8 "$daemon"
if [ $has_pages ]; then
    page qalib 1 >"$tmp/page"
    for command in "${commands[@]}"; do grep -q "qalib-$command(1)" "$tmp/page" || fail "qalib.1 lacks $command"; done
    "$qalib" --help | awk '/^Exit codes:/ { on = 1; next } /^$/ { on = 0 } on && /^  [0-9]/ { print $1 }' | while read -r code; do
        grep -qE "^ +$code$" "$tmp/page" || fail "qalib.1 lacks exit code $code"
    done
fi

# bash completes.
bash -n "$bash_file"
complete_bash() { # WORD...: the last is being typed; what is offered, on one line
    (
        cd "$tmp"
        compopt() { :; } # only inside a completion
        source "$bash_file"
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        _qalib
        mapfile -t COMPREPLY < <(printf "%s\n" "${COMPREPLY[@]}" | LC_ALL=C sort)
        echo "${COMPREPLY[*]}"
    )
}
offers() { # WANTED WORD...
    local wanted=$1 got
    shift
    got=$(complete_bash "$@")
    [ "$got" = "$wanted" ] || fail "$*: bash offers \"$got\" instead of \"$wanted\""
}
mkdir "$tmp/models with space"
touch "$tmp/models.yaml"
offers "quantize" qalib quan
offers "--group-size" qalib quantize --gro
offers "--smooth-alpha --smoothing" qalib quantize --smoo
offers "models with space" qalib quantize --model mod
offers "models with space" qalib quantize -m mod
offers "models with space" qalib quantize --model = mod
offers "models with space models.yaml" qalib quantize -r mod
offers "NF4" qalib quantize --scheme N
offers "NF4" qalib quantize --scheme = N
offers "off on" qalib quantize --clip ""
offers "" qalib quantize --bits ""
offers "models with space" qalib verify mod
offers "models with space models.yaml" qalib report mod
offers "" qalib jobs mod

# zsh loads it, and completes on a terminal.
if command -v zsh >/dev/null; then
    zsh -n "$zsh_file"
    cat >"$tmp/type.zsh" <<'ZSH'
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "PS1=; fpath=($1 \$fpath); autoload -U compinit; compinit -u -D; zstyle ':completion:*' list-prompt ''; LISTMAX=1000; unsetopt beep; cd $2; print ready"
local got= text=
while zpty -r shell text && [[ $text != ready* ]]; do :; done
zpty -w -n shell "$3"$'\t'
for ((i = 0; i < 100; i++)); do # the machine may be busy
    while zpty -rt shell text; do got+=$text; done
    [[ $got == *"$4"* ]] && break
    sleep 0.1
done
print -r -- "$got" | tr -d '\r\a'
ZSH
    type_zsh() { # LINE WORDS: typing LINE and a tab shows WORDS
        local got
        got=$(timeout 20 zsh -f "$tmp/type.zsh" "$tmp/share/zsh/site-functions" "$tmp" "$1" "$2")
        [[ $got == *"$2"* ]] || fail "zsh, \"$1\": \"$2\" is not in \"$got\""
    }
    type_zsh "qalib quan" "qalib quantize"
    type_zsh "qalib quantize --group-s" "--group-size"
    type_zsh "qalib quantize --scheme=N" "NF4"
    type_zsh "qalib quantize --sm" "smoothquant"
    type_zsh "qalib verify models" 'models\ with\ space'
else
    echo "skip: no zsh, its completion is not typed"
fi
echo "manual: ${#commands[@]} commands agree with their pages and completions"
