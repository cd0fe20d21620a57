# qalibd --help as text of scdoc: options become entries, what stands between blank lines paragraphs, examples stay as they are.
function escaped(text) { gsub(/[\\*_]/, "\\\\&", text); return text }
BEGIN { print "qalibd(8)\n\n# NAME\n\nqalibd - queue of quantization jobs, over HTTP on a Unix socket\n\n# SYNOPSIS\n\n*qalibd* [options]\n\n# DESCRIPTION" }
NR == 1 { next }
/^Examples:/ { print "# EXAMPLES\n\n```"; examples = 1; next }
examples { print substr($0, 3); next }
/^  --help/ { print "*--help*, *--version*\n\tthis text; the version\n"; next }
/^  --/ {
    if (!options++) print "# OPTIONS\n"
    head = $1
    rest = substr($0, 3 + length(head))
    argument = ""
    if (match(rest, /^ [^ ]+/)) { argument = substr(rest, 2, RLENGTH - 1); rest = substr(rest, RLENGTH + 1) }
    sub(/^ +/, "", rest)
    print "*" escaped(head) "*" (argument == "" ? "" : " _" escaped(argument) "_") "\n\t" escaped(rest) "\n"
    next
}
/^Signals:/ { print "# SIGNALS\n"; sub(/^Signals: /, "") }
{ print escaped($0) }
END { print "```\n\n# SEE ALSO\n\n*qalib*(1), *qalib-submit*(1)" }
