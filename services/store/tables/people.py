"""People and services: their keys, passwords and browser sessions, the audit trail, erased texts."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, Index, func
from sqlalchemy.orm import Mapped, mapped_column

from services.contracts.audit import Via
from services.contracts.base import JsonObject
from services.contracts.persons import LinkPurpose, Role
from services.store.tables.base import Base, id_column, now_column, one_of


class PersonRow(Base):
    """A person or service."""

    __tablename__ = "person"
    __table_args__ = (one_of("role", Role),)

    id: Mapped[UUID] = id_column()
    name: Mapped[str] = mapped_column(unique=True)
    role: Mapped[str]
    created_at: Mapped[datetime] = now_column()
    erased_at: Mapped[datetime | None]


class ApiKeyRow(Base):
    """An API key, as the SHA-256 of its 256 random bits. `scopes` narrow the rights of its person's role."""

    __tablename__ = "api_key"
    __table_args__ = (Index("ix_api_key_person_id", "person_id"),)

    id: Mapped[UUID] = id_column()
    person_id: Mapped[UUID] = mapped_column(ForeignKey("person.id"))
    name: Mapped[str] = mapped_column(server_default="first key")
    prefix: Mapped[str | None]
    key_sha256: Mapped[str] = mapped_column(unique=True)
    scopes: Mapped[list[str] | None]
    created_at: Mapped[datetime] = now_column()
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class PasswordRow(Base):
    """A person's password, as argon2id keeps it; apart from the person, so that no view of one can carry it."""

    __tablename__ = "password"

    person_id: Mapped[UUID] = mapped_column(ForeignKey("person.id"), primary_key=True)
    hash: Mapped[str]
    changed_at: Mapped[datetime] = now_column()


class LoginSessionRow(Base):
    """A browser that logged in, as the SHA-256 of its cookie; no wider than the key it logged in with."""

    __tablename__ = "login_session"
    __table_args__ = (Index("ix_login_session_person_id_id", "person_id", "id"),)

    id: Mapped[UUID] = id_column()
    person_id: Mapped[UUID] = mapped_column(ForeignKey("person.id"))
    key_id: Mapped[UUID | None] = mapped_column(ForeignKey("api_key.id"))
    token_sha256: Mapped[str] = mapped_column(unique=True)
    address: Mapped[str | None]
    agent: Mapped[str | None]
    created_at: Mapped[datetime] = now_column()
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class LoginLinkRow(Base):
    """A link that works once: it logs its person in, or lets them set a password."""

    __tablename__ = "login_link"
    __table_args__ = (one_of("purpose", LinkPurpose),)

    id: Mapped[UUID] = id_column()
    person_id: Mapped[UUID] = mapped_column(ForeignKey("person.id"), index=True)
    key_id: Mapped[UUID | None] = mapped_column(ForeignKey("api_key.id"))
    purpose: Mapped[str]
    token_sha256: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = now_column()
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]


class LoginAttemptRow(Base):
    """A failed login. The name is kept only as its hash, because people type passwords there."""

    __tablename__ = "login_attempt"
    __table_args__ = (
        Index("ix_login_attempt_name_sha256_created_at", "name_sha256", "created_at"),
        Index("ix_login_attempt_address_created_at", "address", "created_at"),
        Index("ix_login_attempt_created_at", "created_at"),
    )

    id: Mapped[UUID] = id_column()
    name_sha256: Mapped[str]
    address: Mapped[str]
    created_at: Mapped[datetime] = now_column()


class AuditRow(Base):
    """One act of the audit trail: person, action, noun, time, address. The database refuses to change or delete it."""

    __tablename__ = "audit"
    __table_args__ = (
        one_of("via", Via),
        Index("ix_audit_person_id_id", "person_id", "id"),
        Index("ix_audit_action_id", "action", "id"),
        Index("ix_audit_noun_id", "noun_id", "id"),
    )

    id: Mapped[UUID] = id_column()
    person_id: Mapped[UUID | None] = mapped_column(ForeignKey("person.id"))
    via: Mapped[str]
    credential_id: Mapped[UUID | None]
    address: Mapped[str | None]
    action: Mapped[str]
    noun: Mapped[str]
    noun_id: Mapped[str | None]
    detail: Mapped[JsonObject] = mapped_column(server_default="{}")
    created_at: Mapped[datetime] = now_column()


class ErasureRow(Base):
    """The erasure of a person's text, with a report in numbers."""

    __tablename__ = "erasure"

    id: Mapped[UUID] = id_column()
    person_id: Mapped[UUID] = mapped_column(ForeignKey("person.id"), index=True)
    report: Mapped[JsonObject]
    created_at: Mapped[datetime] = now_column()


class ErasedTextRow(Base):
    """The hash and length of one erased text."""

    __tablename__ = "erased_text"

    erasure_id: Mapped[UUID] = mapped_column(ForeignKey("erasure.id"), primary_key=True)
    noun: Mapped[str] = mapped_column(primary_key=True)
    noun_id: Mapped[UUID] = mapped_column(primary_key=True)
    field: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str]
    num_chars: Mapped[int]
