# Completion of hsavectl for bash.
_hsavectl()
{
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command= i
    for ((i = 1; i < COMP_CWORD; i++)); do
        [[ ${COMP_WORDS[i]} == -* ]] || { command=${COMP_WORDS[i]}; break; }
    done
    local words=
    case $before in
    --vm) words=$(cat /sys/kernel/hsave/vms/*/pid 2>/dev/null | sort -u) ;;
    --to | --current) words=$(ls /sys/kernel/hsave/engines 2>/dev/null) ;;
    use) words='stock hsave' ;;
    *)
        case $command in
        '') words='use status engines vms upgrade report --json --help --version' ;;
        use) words='--next-boot' ;;
        engines) words='--current --json' ;;
        upgrade) words='--vm --to --dry-run --json' ;;
        status | vms | report) words='--json' ;;
        esac
        ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}
complete -F _hsavectl hsavectl
