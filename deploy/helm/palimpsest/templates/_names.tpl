{{/* Names and labels. */}}
{{- define "palimpsest.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $whole := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $whole .Values.fullnameOverride | trunc 48 | trimSuffix "-" -}}
{{- end -}}

{{- define "palimpsest.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "palimpsest.labels" -}}
{{ include "palimpsest.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "palimpsest.serviceAccount" -}}
{{- default (ternary (include "palimpsest.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "palimpsest.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* A Secret's name, one's own or the release's; empty where there is nothing to keep secret. */}}
{{- define "palimpsest.kafkaSecret" -}}
{{- if .Values.kafka.existingSecret -}}
{{ .Values.kafka.existingSecret }}
{{- else if .Values.kafka.password -}}
{{ include "palimpsest.fullname" . }}-kafka
{{- end -}}
{{- end -}}

{{- define "palimpsest.mlflowSecret" -}}
{{- if .Values.mlflow.existingSecret -}}
{{ .Values.mlflow.existingSecret }}
{{- else if or .Values.mlflow.token .Values.mlflow.username -}}
{{ include "palimpsest.fullname" . }}-mlflow
{{- end -}}
{{- end -}}
