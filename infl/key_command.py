"""``infl-bench key``: make, show, rotate, revoke, wrap and unwrap a federation's key. Secrets go from file to file only.

Loaded with every start of the command line, so nothing but typer is imported before a command runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="A federation's key: make, show, rotate, revoke, and wrap it for each site.", no_args_is_help=True)

KeyFile = Annotated[Path, typer.Argument(help="A key file (mode 0600).")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file of that name.")]
RevokedList = Annotated[Path | None, typer.Option("--revoked", help="The public list of revoked versions.")]


@app.command()
def new(out: Annotated[Path, typer.Argument(help="The file to write.")], overwrite: Overwrite = False) -> None:
    """Make a key of 256 bits from the operating system's entropy: version 1 of a new federation."""
    from infl.key import Key

    key = Key.new()
    key.save(out, overwrite=overwrite)
    _tell(f"{out}: {key.identity}")


@app.command()
def pair(
    site: Annotated[str, typer.Argument(help="The site's name; it is bound to every key that is wrapped for it.")],
    out: Annotated[Path, typer.Option(help="Folder for SITE.private and SITE.public.")] = Path(),
    overwrite: Overwrite = False,
) -> None:
    """At a site: make the pair for which keys are wrapped; the public half goes to whoever issues the key."""
    from infl import key_file
    from infl.key_wrap import Pair
    from suites.errors import RequestError

    if Path(site).name != site:
        raise RequestError(f"the site's name '{site}' would name a file in another folder; give one without slashes")
    made, private, public = Pair.new(site), out / f"{site}.private", out / f"{site}.public"
    for path in (private, public):  # both or neither
        key_file.refuse_taken(path, overwrite=overwrite)
    made.save(private, overwrite=overwrite)
    made.public.save(public, overwrite=overwrite)
    _tell(f"{public}: site {site}, fingerprint {_spoken(made.public.fingerprint)}; tell it to the issuer by another way")


@app.command()
def show(file: Annotated[Path, typer.Argument(help="Any file of `infl-bench key`.")], revoked: RevokedList = None) -> None:
    """What may be known of a file: version, fingerprint, federation; never the key."""
    from infl import key_file
    from infl.key import Key
    from infl.key_wrap import Pair, PublicHalf, described
    from infl.revocation import Revoked
    from suites.errors import RequestError

    fields = key_file.read(file, "public", "wrapped", "revoked", *key_file.SECRET_FIELD)
    kind = fields["infl-bench"]
    if revoked is not None and kind not in ("key", "wrapped"):
        raise RequestError(f"{file} holds {key_file.WORDS[kind]}, and --revoked looks up the version of a key; leave it out")
    listed = Revoked() if revoked is None else Revoked.load(revoked)
    if kind == "key":
        key = Key.of_fields(fields, file)
        _tell(f"key: {key.identity}")
        listed.refuse(key)
    elif kind in ("public", "private"):
        half = PublicHalf.load(file) if kind == "public" else Pair.load(file).public
        _tell(f"{key_file.WORDS[kind]}: site {half.site}, fingerprint {_spoken(half.fingerprint)}")
    elif kind == "wrapped":
        site, identity = described(fields, file)
        _tell(f"wrapped key for site {site}: {identity}")
        listed.refuse_named(identity)
    else:
        for entry, _ in Revoked.load(file).entries:
            _tell(f"revoked: {entry}")


@app.command()
def rotate(
    key_file: KeyFile,
    out: Annotated[Path, typer.Argument(help="The file for the new version.")],
    revoked: Annotated[Path | None, typer.Option("--revoke", help="Also put the old version on this list.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make the next version from fresh entropy; the old file stays as it is. Sites then fine-tune under the new key."""
    from infl.key import Key
    from infl.revocation import Revoked
    from suites.errors import RequestError

    old = Key.load(key_file)
    made = old.rotated()
    if revoked is None:
        made.save(out, overwrite=overwrite)
    elif revoked.resolve() == out.resolve():
        raise RequestError(f"{out} cannot hold both the new version and the list of revoked ones; give two names")
    else:
        with made.staged(out, overwrite=overwrite) as name, Revoked.at(revoked).with_key(old).staged(revoked) as name_list:
            name()  # the one that may find its place taken
            name_list()
    _tell(f"{out}: {made.identity}")
    if revoked is not None:
        _tell(f"{revoked}: revoked {old.identity}")


@app.command()
def revoke(key_file: KeyFile, revoked: Annotated[Path, typer.Argument(help="The public list; made if it is not there.")]) -> None:
    """Put this version on the list of those that every site refuses."""
    from infl.key import Key
    from infl.revocation import Revoked

    key = Key.load(key_file)
    Revoked.at(revoked).with_key(key).save(revoked)
    _tell(f"{revoked}: revoked {key.identity}")


@app.command()
def wrap(
    key_file: KeyFile,
    site: Annotated[Path, typer.Argument(help="The site's public half.")],
    out: Annotated[Path, typer.Argument(help="The file for the wrapped key.")],
    revoked: RevokedList = None,
    overwrite: Overwrite = False,
) -> None:
    """Seal the key for one site (X25519, AES-256-GCM); the wrapped file may travel in the open."""
    from infl import key_file as files
    from infl.key import Key
    from infl.key_wrap import PublicHalf
    from infl.key_wrap import wrap as seal
    from infl.revocation import Revoked

    key, half = Key.load(key_file), PublicHalf.load(site)
    if revoked is not None:
        Revoked.load(revoked).refuse(key)
    files.write(out, "wrapped", seal(key, half), overwrite=overwrite)
    _tell(f"{out}: for site {half.site} (fingerprint {_spoken(half.fingerprint)}; compare it with the site), {key.identity}")


@app.command()
def unwrap(
    wrapped: Annotated[Path, typer.Argument(help="The wrapped key.")],
    private: Annotated[Path, typer.Argument(help="The site's private half (mode 0600).")],
    out: Annotated[Path, typer.Argument(help="The file for the key.")],
    fingerprint: Annotated[str, typer.Option(help="The key's fingerprint, as the issuer told it by another way.")],
    revoked: RevokedList = None,
    overwrite: Overwrite = False,
) -> None:
    """At a site: open a wrapped key and save it, if it is the one that was announced."""
    from infl import key_file as files
    from infl.key_wrap import Pair
    from infl.key_wrap import unwrap as opened
    from infl.revocation import Revoked

    key = opened(files.read(wrapped, "wrapped"), Pair.load(private), fingerprint=fingerprint, path=wrapped)
    if revoked is not None:
        Revoked.load(revoked).refuse(key)
    key.save(out, overwrite=overwrite)
    _tell(f"{out}: {key.identity}")


def _spoken(fingerprint: str) -> str:
    from infl.key import spoken

    return spoken(fingerprint)


def _tell(line: str) -> None:
    print(line)
