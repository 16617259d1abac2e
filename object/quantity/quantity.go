// Package quantity reads and writes Kubernetes quantities ("500m", "64Mi",
// "1e3") exactly. It refuses what it cannot hold instead of rounding it away:
// the only rounding is up to the next nano-unit, as Kubernetes does.
//
//	quantity = [+-] digits [ "." digits ] [ suffix | exponent ]
//	suffix   = n u m k M G T P E  Ki Mi Gi Ti Pi Ei
//	exponent = (e|E) [+-] digits
//
// Source: the grammar in k8s.io/apimachinery/pkg/api/resource, type Quantity.
package quantity

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"
)

// Limits of what is accepted.
const (
	// maxLength bounds the text of a quantity.
	maxLength = 64
	// maxScale bounds the power of ten: 10^19 fits 64 bits without sign.
	maxScale = 19
)

const nanosPerUnit = 1_000_000_000

// ErrSyntax and ErrRange are the two ways to be refused.
var (
	ErrSyntax = errors.New("not a quantity")
	ErrRange  = errors.New("out of range")
)

// Quantity is whole + nano/10^9. The zero value is 0.
type Quantity struct {
	whole int64
	// 0 <= nano < 10^9, also in negative quantities.
	nano int32
}

// Parse reads a quantity.
func Parse(s string) (Quantity, error) {
	if len(s) > maxLength {
		return Quantity{}, fmt.Errorf("%w: longer than %d characters", ErrSyntax, maxLength)
	}
	negative, rest := cutSign(s)
	mantissa, scale, rest, err := parseDigits(rest)
	if err != nil {
		return Quantity{}, fmt.Errorf("%w: %q", err, s)
	}
	factor, exponent, err := parseSuffix(rest)
	if err != nil {
		return Quantity{}, fmt.Errorf("%w: %q", err, s)
	}
	q, ok := combine(mantissa, factor, exponent-scale)
	if !ok {
		return Quantity{}, fmt.Errorf("%w: %q", ErrRange, s)
	}
	if negative {
		return q.negate(), nil
	}
	return q, nil
}

func cutSign(s string) (negative bool, rest string) {
	if strings.HasPrefix(s, "-") {
		return true, s[1:]
	}
	return false, strings.TrimPrefix(s, "+")
}

// parseDigits reads digits with a point: mantissa / 10^scale.
func parseDigits(s string) (mantissa uint64, scale int, rest string, err error) {
	i, point := 0, -1
	for ; i < len(s); i++ {
		if s[i] == '.' && point < 0 {
			point = i
			continue
		}
		if s[i] < '0' || s[i] > '9' {
			break
		}
	}
	whole, fraction := s[:i], ""
	if point >= 0 {
		whole, fraction = s[:point], s[point+1:i]
	}
	if whole == "" && fraction == "" {
		return 0, 0, "", ErrSyntax
	}
	fraction = strings.TrimRight(fraction, "0")
	digits := strings.TrimLeft(whole+fraction, "0")
	if digits == "" {
		return 0, 0, s[i:], nil
	}
	mantissa, err = strconv.ParseUint(digits, 10, 64)
	if err != nil {
		return 0, 0, "", ErrRange
	}
	return mantissa, len(fraction), s[i:], nil
}

// parseSuffix returns what a suffix multiplies by: factor * 10^exponent.
func parseSuffix(s string) (factor uint64, exponent int, err error) {
	const decimal, binary = "kMGTPE", "KMGTPE"
	switch {
	case s == "":
		return 1, 0, nil
	case len(s) == 1 && strings.Contains("num", s):
		return 1, -9 + 3*strings.Index("num", s), nil
	case len(s) == 1 && strings.Contains(decimal, s):
		return 1, 3 * (1 + strings.Index(decimal, s)), nil
	case len(s) == 2 && s[1] == 'i' && strings.Contains(binary, s[:1]):
		return 1 << (10 * (1 + strings.Index(binary, s[:1]))), 0, nil
	case s[0] == 'e' || s[0] == 'E':
		return parseExponent(s[1:])
	}
	return 0, 0, ErrSyntax
}

func parseExponent(s string) (factor uint64, exponent int, err error) {
	exponent, err = strconv.Atoi(s)
	if errors.Is(err, strconv.ErrRange) || exponent > 2*maxScale || exponent < -2*maxScale {
		return 0, 0, ErrRange
	}
	if err != nil {
		return 0, 0, ErrSyntax
	}
	return 1, exponent, nil
}

// combine is mantissa * factor * 10^exponent, rounded up to nano-units.
func combine(mantissa, factor uint64, exponent int) (Quantity, bool) {
	if mantissa == 0 {
		return Quantity{}, true
	}
	if exponent > maxScale || exponent < -maxScale {
		return Quantity{}, false
	}
	divisor := uint64(1)
	if exponent < 0 {
		divisor = pow10(-exponent)
	} else if exponent > 0 {
		factor = pow10(exponent) // binary suffixes never come with an exponent
	}
	high, low := bits.Mul64(mantissa, factor)
	if high >= divisor {
		return Quantity{}, false
	}
	whole, rest := bits.Div64(high, low, divisor)
	high, low = bits.Mul64(rest, nanosPerUnit)
	nano, rest := bits.Div64(high, low, divisor)
	if rest > 0 {
		nano++
	}
	if nano == nanosPerUnit {
		whole, nano = whole+1, 0
	}
	if whole > math.MaxInt64 {
		return Quantity{}, false
	}
	return Quantity{int64(whole), int32(nano)}, true
}

func pow10(n int) uint64 {
	p := uint64(1)
	for range n {
		p *= 10
	}
	return p
}

func (q Quantity) negate() Quantity {
	if q.nano == 0 {
		return Quantity{-q.whole, 0}
	}
	return Quantity{-q.whole - 1, nanosPerUnit - q.nano}
}

// Sign is -1, 0 or 1.
func (q Quantity) Sign() int { return q.Compare(Quantity{}) }

// Compare is -1, 0 or 1 as q is less than, equal to or greater than r.
func (q Quantity) Compare(r Quantity) int {
	return cmp.Or(cmp.Compare(q.whole, r.whole), cmp.Compare(q.nano, r.nano))
}

// Units is q rounded up to whole units, for example bytes.
func (q Quantity) Units() (int64, error) { return q.scaled(1) }

// Milli is q in thousandths, rounded up, for example millicores.
func (q Quantity) Milli() (int64, error) { return q.scaled(1000) }

func (q Quantity) scaled(scale int64) (int64, error) {
	step := int32(nanosPerUnit / scale)
	part := int64((q.nano + step - 1) / step)
	if q.whole > (math.MaxInt64-part)/scale || q.whole < math.MinInt64/scale {
		return 0, fmt.Errorf("%w: more than %d", ErrRange, math.MaxInt64/scale)
	}
	return q.whole*scale + part, nil
}

// FormatMilli writes thousandths: 1500 is "1500m", 2000 is "2".
func FormatMilli(milli int64) string {
	if milli%1000 == 0 {
		return strconv.FormatInt(milli/1000, 10)
	}
	return strconv.FormatInt(milli, 10) + "m"
}

// FormatBytes writes bytes with the largest binary suffix that stays exact:
// 67108864 is "64Mi", 1000 is "1000".
func FormatBytes(n int64) string {
	i := 0
	const suffixes = "KMGTPE"
	for n != 0 && n%1024 == 0 && i < len(suffixes) {
		n /= 1024
		i++
	}
	if i == 0 {
		return strconv.FormatInt(n, 10)
	}
	return strconv.FormatInt(n, 10) + suffixes[i-1:i] + "i"
}
