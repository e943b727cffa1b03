{{/*
The settings file: what the values say, then what the chart alone knows: where secrets are mounted, and where to listen.
What a pod would only find out by ending again and again is refused here.
*/}}
{{- define "palimpsest.settings" -}}
{{- $given := deepCopy .Values.settings -}}
{{- $kafka := default dict $given.kafka -}}
{{- if not $kafka.bootstrap_servers -}}
{{- fail "settings.kafka.bootstrap_servers is needed: host:port[,host:port...]" -}}
{{- end -}}
{{- $registry := default dict $given.registry -}}
{{- if and (not $registry.tracking_uri) (ne (toString $registry.enabled) "false") -}}
{{- fail "settings.registry.tracking_uri is needed, such as http://mlflow.mlflow:5000 (or settings.registry.enabled: false, for a learner alone)" -}}
{{- end -}}
{{- if not $registry.tracking_uri -}}
{{- if or .Values.predictor.enabled .Values.challenger.enabled -}}
{{- fail "predictors need settings.registry.tracking_uri; or set predictor.enabled and challenger.enabled to false" -}}
{{- end -}}
{{- $_ := unset $registry "tracking_uri" -}}
{{- end -}}
{{- range list "sasl_plain_password" "sasl_oauth_token" "ssl_password" "proxy_url" -}}
{{- if hasKey $kafka . -}}
{{- fail (printf "settings.kafka.%s would stand in a ConfigMap: use kafka.password or kafka.existingSecret, or its ..._file" .) -}}
{{- end -}}
{{- end -}}
{{- if include "palimpsest.kafkaSecret" . -}}
{{- if not (hasPrefix "SASL_" (toString $kafka.security_protocol)) -}}
{{- fail "there is a password for Kafka, but settings.kafka.security_protocol is not SASL_SSL or SASL_PLAINTEXT" -}}
{{- end -}}
{{- $_ := set $kafka "sasl_plain_password_file" (printf "/run/secrets/kafka/%s" .Values.kafka.passwordKey) -}}
{{- end -}}
{{- with .Values.kafka.tls -}}
{{- if .existingSecret -}}
{{- if .ca }}{{ $_ := set $kafka "ssl_cafile" (printf "/run/secrets/kafka-tls/%s" .ca) }}{{ end -}}
{{- if .certificate }}{{ $_ := set $kafka "ssl_certfile" (printf "/run/secrets/kafka-tls/%s" .certificate) }}{{ end -}}
{{- if .key }}{{ $_ := set $kafka "ssl_keyfile" (printf "/run/secrets/kafka-tls/%s" .key) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $listen := dict
      "metrics" (dict "host" "0.0.0.0" "port" 9095)
      "worker" (dict "metrics_host" "0.0.0.0" "metrics_port" 9097)
      "predictor" (dict "host" "0.0.0.0" "port" 9096) -}}
{{- mergeOverwrite $given (dict "kafka" $kafka "registry" $registry) $listen | toYaml -}}
{{- end -}}
