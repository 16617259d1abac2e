package pki

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"slices"
	"strings"
	"time"
)

// A join token, in lower-case base32 (letters and 2 to 7) after the prefix:
//
//	balsa1.<id>.<secret>.<ca hash>.<checksum>
//	       10   32       52        8           characters
//	       50   160      256       40          bits
//
// The checksum is the beginning of the SHA-256 of everything before its dot. It
// tells a typing or copying mistake apart from a wrong or expired token, before
// anything is sent; it is no protection and needs none.
const (
	tokenPrefix      = "balsa1"
	tokenIDLen       = 10
	tokenSecretLen   = 32
	tokenHashLen     = 52
	tokenChecksumLen = 8
	tokenSaltBytes   = 16

	// MaxTokenBytes bounds the text of a token.
	MaxTokenBytes = 256
)

// Limits of join tokens.
const (
	TokenTTLDefault = 24 * time.Hour
	TokenTTLMax     = 365 * day
	TokenUsesMax    = 10_000
	tokenTextMax    = 256 // bytes of a description
)

var tokenEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Token is a join token as its holder has it. It contains a secret: it is never
// stored by the cluster, and prints without it.
type Token struct {
	ID     string
	CAHash Hash
	secret string
}

// String identifies the token without its secret.
func (t Token) String() string { return tokenPrefix + "." + t.ID + ".<secret>" }

// GoString keeps the secret out of %#v as well.
func (t Token) GoString() string { return t.String() }

// Reveal is the whole token with its secret, to be handed to the joiner.
func (t Token) Reveal() string {
	body := strings.Join([]string{tokenPrefix, t.ID, t.secret, tokenEncoding.EncodeToString(t.CAHash[:])}, ".")
	return body + "." + tokenChecksum(body)
}

func tokenChecksum(body string) string {
	sum := sha256.Sum256([]byte(body))
	return tokenEncoding.EncodeToString(sum[:])[:tokenChecksumLen]
}

// ParseToken reads a token. Its errors are ErrTokenFormat, say which part is
// wrong, and never repeat any of the text.
func ParseToken(text string) (Token, error) {
	text = strings.TrimSpace(text)
	if len(text) > MaxTokenBytes {
		return Token{}, refuse(ErrTokenFormat, "join token has %d characters; at most %d are allowed", len(text), MaxTokenBytes)
	}
	parts := strings.Split(text, ".")
	if parts[0] != tokenPrefix {
		return Token{}, refuse(ErrTokenFormat, "this is not a join token: it does not begin with %q", tokenPrefix+".")
	}
	if len(parts) != 5 {
		return Token{}, refuse(ErrTokenFormat, "join token has %d parts, 5 are needed (%s.<id>.<secret>.<ca hash>.<checksum>); was it cut off?", len(parts), tokenPrefix)
	}
	lens := []int{len(tokenPrefix), tokenIDLen, tokenSecretLen, tokenHashLen, tokenChecksumLen}
	names := []string{"prefix", "id", "secret", "CA hash", "checksum"}
	for i, part := range parts {
		if len(part) != lens[i] {
			return Token{}, refuse(ErrTokenFormat, "the %s in the join token has %d characters, %d are needed; was it cut off?", names[i], len(part), lens[i])
		}
		if i > 0 && !isBase32(part) {
			return Token{}, refuse(ErrTokenFormat, "the %s in the join token has characters other than a to z and 2 to 7; copy it again", names[i])
		}
	}
	return assembleToken(text, parts)
}

func assembleToken(text string, parts []string) (Token, error) {
	body := text[:len(text)-tokenChecksumLen-1]
	if tokenChecksum(body) != parts[4] {
		return Token{}, refuse(ErrTokenFormat, "the checksum of the join token is wrong: a character was changed on the way here; copy it again")
	}
	t := Token{ID: parts[1], secret: parts[2]}
	hash, err := tokenEncoding.DecodeString(parts[3])
	if err != nil || len(hash) != len(t.CAHash) || tokenEncoding.EncodeToString(hash) != parts[3] {
		return Token{}, refuse(ErrTokenFormat, "the CA hash in the join token cannot be read; make a new token")
	}
	copy(t.CAHash[:], hash)
	return t, nil
}

func isBase32(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || '2' <= c && c <= '7') {
			return false
		}
	}
	return true
}

// TokenRecord is what the cluster stores of a token.
type TokenRecord struct {
	ID          string
	Role        Role // the only role that the token admits to
	SecretHash  []byte
	Salt        []byte
	Created     time.Time
	Expires     time.Time
	MaxUses     uint32
	Uses        uint32
	Revoked     bool
	Description string
}

// TokenRequest is what to make a token for.
type TokenRequest struct {
	Role        Role
	TTL         time.Duration // zero is TokenTTLDefault
	MaxUses     uint32        // zero is one
	Description string
}

// NewToken makes a token that pins the authority with the given hash, and the
// record of it to store. The token itself cannot be had again from the record.
func NewToken(req TokenRequest, ca Hash, now time.Time) (Token, TokenRecord, error) {
	if err := req.check(); err != nil {
		return Token{}, TokenRecord{}, err
	}
	ttl := req.TTL
	if ttl == 0 {
		ttl = TokenTTLDefault
	}
	token := Token{ID: randomBase32(tokenIDLen), secret: randomBase32(tokenSecretLen), CAHash: ca}
	salt := randomBytes(tokenSaltBytes)
	return token, TokenRecord{
		ID:          token.ID,
		Role:        req.Role,
		SecretHash:  token.hash(salt),
		Salt:        salt,
		Created:     now,
		Expires:     now.Add(ttl),
		MaxUses:     max(req.MaxUses, 1),
		Description: req.Description,
	}, nil
}

func (req TokenRequest) check() error {
	if !req.Role.Valid() {
		_, err := ParseRole(string(req.Role))
		return err
	}
	if req.TTL < 0 || req.TTL > TokenTTLMax {
		return refuse(ErrBadRequest, "ttl %v of a join token: more than 0 and at most %v is allowed", req.TTL, TokenTTLMax)
	}
	if req.MaxUses > TokenUsesMax {
		return refuse(ErrBadRequest, "%d uses of a join token: at most %d are allowed", req.MaxUses, TokenUsesMax)
	}
	if len(req.Description) > tokenTextMax {
		return refuse(ErrBadRequest, "description of a join token has %d bytes; at most %d are allowed", len(req.Description), tokenTextMax)
	}
	return nil
}

// randomBase32 has 5 random bits a character.
func randomBase32(n int) string {
	return tokenEncoding.EncodeToString(randomBytes(n))[:n]
}

// hash needs no slow function: the secret has 160 random bits.
func (t Token) hash(salt []byte) []byte {
	sum := sha256.Sum256(slices.Concat([]byte("balsa token 1\x00"), salt, []byte(t.ID), []byte(t.secret)))
	return sum[:]
}

// matches compares in constant time. A record without hash matches nothing.
func (t Token) matches(r *TokenRecord) bool {
	return r != nil && r.ID == t.ID && len(r.Salt) > 0 &&
		subtle.ConstantTimeCompare(t.hash(r.Salt), r.SecretHash) == 1
}

// Usable says whether the record, by itself, admits anybody at now: nil,
// ErrTokenRevoked, ErrTokenExpired or ErrTokenUsed.
func (r *TokenRecord) Usable(now time.Time) error {
	if err := r.alive(now); err != nil {
		return err
	}
	if r.Uses >= r.MaxUses {
		return refuse(ErrTokenUsed, "join token %s has been used %d of %d times; make a new one: balsa token create --role %s", r.ID, r.Uses, r.MaxUses, r.Role)
	}
	return nil
}

func (r *TokenRecord) alive(now time.Time) error {
	if r.Revoked {
		return refuse(ErrTokenRevoked, "join token %s was revoked; make a new one: balsa token create --role %s", r.ID, r.Role)
	}
	if !now.Before(r.Expires) {
		return refuse(ErrTokenExpired, "join token %s expired at %s, it is %s now; make a new one: balsa token create --role %s", r.ID, stamp(r.Expires), stamp(now), r.Role)
	}
	return nil
}
