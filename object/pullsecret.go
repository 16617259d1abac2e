package object

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// maxPullRegistries bounds the registries of one Secret.
const maxPullRegistries = 256

// RegistryAuth is how to sign in to a registry.
type RegistryAuth struct {
	Username, Password string
	// IdentityToken is given to the registry's token service instead of a
	// password, RegistryToken to the registry itself.
	IdentityToken, RegistryToken string
}

// errPullSecret never tells what stands in the Secret.
var errPullSecret = errors.New(`the value of .dockerconfigjson is not a JSON object such as {"auths": {"registry.example": {"username": …, "password": …}}}`)

// ParsePullSecret reads an opened Secret of type kubernetes.io/dockerconfigjson:
// what to say to each registry, by the name that the Secret gives it. No error
// repeats any of its values.
func ParsePullSecret(s *balsav1.Secret) (map[string]RegistryAuth, error) {
	if s.GetType() != SecretDockerConfigJSON {
		return nil, fmt.Errorf("%s: type: found %s, allowed for pulling images: %s", Describe(s), quoted(s.GetType()), SecretDockerConfigJSON)
	}
	auths, err := parseDockerConfig(s.GetData()[DockerConfigJSONKey])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", Describe(s), err)
	}
	return auths, nil
}

func parseDockerConfig(value []byte) (map[string]RegistryAuth, error) {
	var config struct {
		Auths map[string]struct {
			Username      string `json:"username"`
			Password      string `json:"password"`
			Auth          string `json:"auth"`
			IdentityToken string `json:"identitytoken"`
			RegistryToken string `json:"registrytoken"`
		} `json:"auths"`
	}
	if err := json.Unmarshal(value, &config); err != nil || config.Auths == nil {
		return nil, errPullSecret
	}
	if len(config.Auths) > maxPullRegistries {
		return nil, fmt.Errorf("auths: found %d registries, allowed: %d", len(config.Auths), maxPullRegistries)
	}
	out := make(map[string]RegistryAuth, len(config.Auths))
	for _, registry := range sortedKeys(config.Auths) {
		a := config.Auths[registry]
		own := RegistryAuth{a.Username, a.Password, a.IdentityToken, a.RegistryToken}
		if a.Auth != "" {
			text, err := base64.StdEncoding.DecodeString(a.Auth)
			user, password, ok := strings.Cut(string(text), ":")
			if err != nil || !ok {
				return nil, fmt.Errorf("auths[%s].auth: is not base64 of user:password", registry)
			}
			own.Username, own.Password = user, strings.TrimRight(password, "\x00")
		}
		out[registry] = own
	}
	return out, nil
}
