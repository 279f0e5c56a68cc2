"""`vlltr doctor` and `vlltr completion`."""

from __future__ import annotations

import click

from vlltr_index.cli.context import Context, pass_context
from vlltr_index.wording import many


@click.command("doctor")
@click.option("--unlock", is_flag=True, help="Clear the lock that a killed writer left in object storage.")
@pass_context
def doctor_command(context: Context, unlock: bool) -> None:
    """Look at versions, the device and the workspace; exit code 1 where something must be mended."""
    from vlltr_index.pipelines.doctor import diagnose

    if unlock:
        holder = context.open().storage.unlock()
        context.say(f"Cleared the lock of {holder}." if holder else "There is no lock to clear.")
        return
    checks = diagnose(context.workspace, named=context.workspace is not None)
    problems = sum(check.state == "problem" for check in checks)
    lines = (
        f"{check.state:<8} {check.name:<18} {check.value}"
        + (f"\n{'':<27} {check.mend}" if check.mend else "")
        for check in checks
        if check.state == "problem" or not context.quiet
    )
    context.show({"ok": not problems, "checks": checks}, lines, always=True)
    context.say(f"{many(problems, 'problem')} found." if problems else "Everything is in order.")
    if problems:
        raise click.exceptions.Exit(1)


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> None:
    """Print the script that completes commands and options with Tab in SHELL.

    \b
    bash:  eval "$(vlltr completion bash)"    in ~/.bashrc
    zsh:   eval "$(vlltr completion zsh)"     in ~/.zshrc
    fish:  vlltr completion fish > ~/.config/fish/completions/vlltr.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None  # the choice names only shells that click knows
    click.echo(found(context.find_root().command, {}, "vlltr", "_VLLTR_COMPLETE").source())
